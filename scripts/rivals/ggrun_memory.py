"""Prints what ggrun's process holds after a token, as JSON: `python ggrun_memory.py MODEL THREADS`.

private: bytes of anonymous memory (smaps_rollup's `Anonymous`); arenas: those the ledger lists: KV, scratch and weights that are a copy.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggrun import Engine, Sampling


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Anonymous:"))
    return 1024 * int(line.split()[1])


def when_steady(seconds: float = 0.3) -> int:
    """What it is when it no longer grows: weights may still be moving to their copy."""
    before, now = -1, anonymous_bytes()
    while now > before:
        time.sleep(seconds)
        before, now = now, anonymous_bytes()
    return now


def main() -> None:
    with Engine.open(sys.argv[1], n_ctx=4096, n_threads=int(sys.argv[2])) as engine:
        engine.submit(engine.tokenizer.encode("Hello"), Sampling(temperature=0, ignore_eos=True), n_predict=1).wait()
        held = [line for line in engine.plan.ledger.lines if line.purpose in ("kv", "scratch") or "copy" in line.what]
        print(json.dumps({"private": when_steady(), "arenas": sum(line.n_bytes for line in held)}))


if __name__ == "__main__":
    main()
