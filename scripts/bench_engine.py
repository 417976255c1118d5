#!/usr/bin/env python3
"""Tokens a second of the CPU executor on one file: a prompt of 512 (pp512) and single tokens (tg32), at some depths of context.

    python scripts/bench_engine.py MODEL.gguf [--threads N] [--depths 0,4096] [--runs 5]

Random ids, nothing sampled. Each figure is the median of the runs; the depths alternate, so that a machine that slows down slows all.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from ggrun.engine.loading import Options, make_executor, plan_model
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.executor import Batch, Executor

PROMPT, TOKENS = 512, 32


def run(executor: Executor, position: int, n: int, n_vocab: int, table: np.ndarray) -> float:
    """Seconds for n tokens of one sequence from a position on."""
    ids = np.random.default_rng(position).integers(0, n_vocab, n).astype(np.int32)
    positions = np.arange(position, position + n, dtype=np.int32)
    start = perf_counter()
    executor.run(Batch(ids, positions, np.zeros(n, np.int32), table, np.array([n - 1], np.int32)))
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    depths = [int(d) for d in arguments.depths.split(",")]
    n_ctx = max(depths) + PROMPT + TOKENS
    planned = plan_model(arguments.model, Options(n_ctx=n_ctx, n_threads=arguments.threads))
    executor = make_executor("cpu", planned, None)
    table = np.arange(1, 1 + -(-n_ctx // KV_BLOCK_TOKENS), dtype=np.int32)[None]
    n_vocab = planned.spec.n_vocab
    for position in range(0, max(depths), PROMPT):  # fill the context once; also warms everything
        run(executor, position, PROMPT, n_vocab, table)
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.runs):
        for depth in depths:
            at = f" @ d{depth}" if depth else ""
            seconds.setdefault(f"pp{PROMPT}{at}", []).append(run(executor, depth, PROMPT, n_vocab, table) / PROMPT)
            token = [run(executor, depth + i, 1, n_vocab, table) for i in range(TOKENS)]
            seconds.setdefault(f"tg{TOKENS}{at}", []).append(sum(token) / TOKENS)
    for name, samples in seconds.items():
        print(f"{name:16} {1 / median(samples):8.1f} t/s  ({1 / max(samples):.1f} .. {1 / min(samples):.1f})")
    executor.close()
    planned.file.close()


if __name__ == "__main__":
    main()
