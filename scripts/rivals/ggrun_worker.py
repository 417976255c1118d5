"""ggrun as a worker: `python ggrun_worker.py MODEL THREADS`. Drives the executor: neither text nor sampling is measured.

Requests, one JSON object a line; positions and depths in tokens, times in seconds:
    context(n_ctx, n_seqs, flash)   memory for that many tokens, of one sequence (n_seqs 0) or of n_seqs with equal parts
    fill(ids, depth, state)         sequence 0 gets `depth` tokens of context; what they are does not change the speed
    prompt(ids, depth)              append the ids, logits of the last one; then back to the depth -> seconds, top (most likely id)
    tokens(ids, depth, n_seqs)      len(ids) steps, each one token of every sequence with its logits; then back -> seconds
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.loading import Options, Planned, make_executor, plan_model
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.executor import Batch, Executor

N_UBATCH = 512


class Engine:
    def __init__(self, path: str, n_threads: int) -> None:
        self.path, self.n_threads = path, n_threads
        self.made: dict[tuple[int, int], tuple[Planned, Executor]] = {}

    def context(self, n_ctx: int, n_seqs: int, flash: int) -> dict[str, object]:
        key = n_ctx, n_seqs
        if key not in self.made:
            options = Options(n_ctx=n_ctx, n_threads=self.n_threads, n_ubatch=N_UBATCH, n_parallel=max(n_seqs, 1))
            planned = plan_model(self.path, options)
            self.made[key] = planned, make_executor("cpu", planned, None)
        planned, self.executor = self.made[key]
        self.executor.settle()
        n = max(n_seqs, 1)
        per_seq = (planned.plan.shape.n_kv_blocks - 1) // n
        self.tables = np.arange(1, 1 + n * per_seq, dtype=np.int32).reshape(n, per_seq)
        return {}

    def run(self, ids: list[int], positions: list[int], seqs: list[int], wanted: list[int]) -> NDArray[np.float32]:
        batch_ids, at, whose, rows = (np.array(numbers, np.int32) for numbers in (ids, positions, seqs, wanted))
        return self.executor.run(Batch(batch_ids, at, whose, self.tables, rows))

    def append(self, ids: list[int], at: int) -> NDArray[np.float32]:
        logits = np.empty((0, 0), np.float32)
        for first in range(0, len(ids), N_UBATCH):
            part = ids[first : first + N_UBATCH]
            last = [len(part) - 1] if first + N_UBATCH >= len(ids) else []
            logits = self.run(part, [at + first + i for i in range(len(part))], [0] * len(part), last)
        return logits

    def fill(self, ids: list[int], depth: int, state: str) -> dict[str, object]:
        if depth:
            self.append(ids[:N_UBATCH], 0)
        table, n = self.tables[0], N_UBATCH // KV_BLOCK_TOKENS
        for block in range(n, -(-depth // KV_BLOCK_TOKENS)):
            self.executor.copy_block(int(table[block % n]), int(table[block]))
        return {"depth": depth}

    def prompt(self, ids: list[int], depth: int) -> dict[str, object]:
        start = perf_counter()
        logits = self.append(ids, depth)
        return {"seconds": perf_counter() - start, "top": int(logits[0].argmax())}

    def tokens(self, ids: list[int], depth: int, n_seqs: int) -> dict[str, object]:
        seqs = list(range(n_seqs))
        start = perf_counter()
        for i, id_ in enumerate(ids):
            self.run([id_] * n_seqs, [depth + i] * n_seqs, seqs, seqs)
        return {"seconds": perf_counter() - start}


def main() -> None:
    engine = Engine(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(engine, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
