"""ggrun as a worker: `python ggrun_worker.py MODEL THREADS`. Runs cases as `ggrun bench` does: neither text nor sampling is measured.

Requests, one JSON object a line. A case is {n_prompt, n_gen, n_depth, n_parallel}, in tokens and sequences:
    context(n_ctx, n_parallel, flash)   memory for that many tokens of each sequence; flash attention as llama.cpp numbers it
    warm(case, deepest, state)          n_depth tokens of context, it does not matter which; then one run that does not count
    run(case) -> seconds                n_prompt tokens, logits of the last; or n_gen steps of one token, with its logits, of every sequence
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggrun.bench.matrix import Case
from ggrun.bench.session import Session, opened
from ggrun.engine.loading import Options


def ignore(doing: str, n_tokens: int, nanoseconds: int) -> None:
    """No progress is shown."""


class Engine:
    """A model opened once, with the context of the first request; its answers are JSON objects."""

    def __init__(self, path: Path, n_threads: int, closing: ExitStack) -> None:
        self._path, self._options, self._closing = path, Options(n_threads=n_threads), closing
        self._session: Session | None = None

    def context(self, n_ctx: int, n_parallel: int, flash: int) -> dict[str, float]:
        if self._session is None:
            room = Case(n_ctx, 0, n_parallel=n_parallel)
            self._session = self._closing.enter_context(opened(self._path, self._options, [room], None))
        return {}

    def warm(self, case: dict[str, int], deepest: int, state: str) -> dict[str, float]:
        assert self._session
        self._session.run(Case(**case), 0, True, ignore)
        return {}

    def run(self, case: dict[str, int]) -> dict[str, float]:
        assert self._session
        return {"seconds": 1e-9 * self._session.run(Case(**case), 1, False, ignore)[0]}


def main() -> None:
    with ExitStack() as closing:
        engine = Engine(Path(sys.argv[1]), int(sys.argv[2]), closing)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(getattr(engine, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
