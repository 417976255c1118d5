#!/usr/bin/env python3
"""What a kept prefix saves: a prompt computed, found in the pool, in host memory, on disk after a restart, and in a slot's file.

    python scripts/bench_prefixes.py MODEL.gguf [--tokens 2000] [-ctk f16 -ctv f16] [-t N]

Each figure is the time to the first token of a prompt that ends in 8 tokens of its own. Random models will do (scripts/make_model.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ggrun import Engine, Sampling
from ggrun.plan.ledger import human

GREEDY = Sampling(temperature=0.0, ignore_eos=True)


def first_token(engine: Engine, prompt: list[int], what: str) -> list[int]:
    """Say how long it takes; returns a few tokens."""
    began = perf_counter()
    generation = engine.submit(prompt, GREEDY, n_predict=4)
    events = iter(generation)
    next(events)
    seconds = perf_counter() - began
    for _ in events:
        pass
    print(f"{what:44} {1e3 * seconds:9.0f} ms   {generation.timings.cache_n:6} of {len(prompt)} tokens found")
    return generation.ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("-ctk", default="f16")
    parser.add_argument("-ctv", default="f16")
    parser.add_argument("-t", type=int, default=0)
    asked = parser.parse_args()
    rng = np.random.default_rng(1)
    system, other = ([int(i) for i in rng.integers(1000, 20000, asked.tokens)] for _ in range(2))
    tails = [[int(i) for i in rng.integers(1000, 20000, 8)] for _ in range(4)]
    options = {"n_ctx": asked.tokens + 64, "type_k": asked.ctk, "type_v": asked.ctv, "n_threads": asked.t}
    with tempfile.TemporaryDirectory() as folder:
        kept = {"disk_cache": Path(folder) / "prefixes"}
        with Engine.open(asked.model, cram_mib=1024, **options, **kept) as engine:
            engine._executor.settle()
            first_token(engine, other[:64], "warm-up")
            print(f"a block: {human(engine._form.n_bytes)}, {asked.tokens} tokens: {human(asked.tokens // 32 * engine._form.n_bytes)}")
            want = first_token(engine, system + tails[0], "computed")
            first_token(engine, system + tails[1], "found in the pool")
            began = perf_counter()
            n_tokens, n_bytes = engine.save_slot(0, Path(folder) / "slot")
            print(f"saving the slot: {n_tokens} tokens, {human(n_bytes)}, {perf_counter() - began:.2f} s")
            first_token(engine, other + tails[2], "another prompt, which pushes it out")
            assert first_token(engine, system + tails[0], "found in host memory (-cram)") == want
        with Engine.open(asked.model, **options) as engine:
            engine._executor.settle()
            first_token(engine, other[:64], "warm-up")
            assert first_token(engine, system + tails[0], "restarted without the disk cache") == want
        with Engine.open(asked.model, **options, **kept) as engine:
            engine._executor.settle()
            first_token(engine, other[:64], "warm-up")
            assert first_token(engine, system + tails[0], "restarted with the disk cache") == want
        with Engine.open(asked.model, **options) as engine:
            engine._executor.settle()
            first_token(engine, other[:64], "warm-up")
            began = perf_counter()
            engine.restore_slot(0, Path(folder) / "slot")
            print(f"restoring the slot: {perf_counter() - began:.2f} s")
            assert first_token(engine, system + tails[0], "restored from the slot's file") == want


if __name__ == "__main__":
    main()
