#!/usr/bin/env python3
"""Milliseconds to choose one token of a large vocabulary, by settings and by how the logits are spread: medians, on one thread.

    python scripts/bench_sampling.py [--vocab 152064] [--history 4096] [--runs 31]

text: a Zipf distribution, as models give; wide: normal, with thousands of tokens in the nucleus; close: within 0.1, nearly all tokens in
the nucleus and all different; flat: all equal. The history is random, its second half a repetition of the first.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from ggrun.engine.sampling import Sampler, Sampling

OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "greedy": {"temperature": 0.0},
    "default, penalties over 64": {"repeat_penalty": 1.1, "frequency_penalty": 0.1},
    "default, penalties over all": {"repeat_penalty": 1.1, "frequency_penalty": 0.1, "repeat_last_n": -1},
    "default, DRY": {"dry_multiplier": 0.8},
    "default, 300 biases": {"logit_bias": tuple((500 * i, 1.0) for i in range(300))},
    "top-k 0, the rest default": {"top_k": 0},
    "top-k 5000": OPEN | {"top_k": 5000},
    "temperature only": OPEN,
    "top-p": OPEN | {"top_p": 0.95},
    "min-p": OPEN | {"min_p": 0.05},
    "typical": OPEN | {"typical_p": 0.95},
    "top-n-sigma": OPEN | {"top_n_sigma": 1.0},
    "xtc": OPEN | {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "dynamic temperature": OPEN | {"dynatemp_range": 0.5},
    "mirostat 1": OPEN | {"mirostat": 1},
    "mirostat 2": OPEN | {"mirostat": 2},
    "all of them": {
        "top_k": 0,
        "typical_p": 0.95,
        "top_n_sigma": 3.0,
        "xtc_probability": 1.0,
        "dynatemp_range": 0.5,
        "dry_multiplier": 0.8,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
    },
}


def spreads(n: int) -> dict[str, np.ndarray]:
    """Logits float32 [n] by name."""
    random = np.random.default_rng(0)
    return {
        "text": (-1.1 * np.log(random.permutation(n) + 1)).astype(np.float32),
        "wide": random.normal(scale=4, size=n).astype(np.float32),
        "close": random.random(n, np.float32) / 10,
        "flat": np.zeros(n, np.float32),
    }


def milliseconds(settings: dict[str, object], logits: np.ndarray, history: list[int], runs: int) -> float:
    """Median over runs of one choice and of noting it, after three to warm up."""
    sampler = Sampler(Sampling(seed=1, **settings), len(logits))  # type: ignore[arg-type]
    for token in history:
        sampler.accept(token)
    times = []
    for _ in range(3 + runs):
        start = perf_counter()
        sampler.accept(sampler.sample(logits).id)
        times.append(perf_counter() - start)
    return 1e3 * median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=152_064)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=31)
    arguments = parser.parse_args()
    logits = spreads(arguments.vocab)
    history = np.random.default_rng(1).integers(0, arguments.vocab, arguments.history // 2).tolist() * 2
    print(f"| ms, vocabulary of {arguments.vocab:,} | {' | '.join(logits)} |\n|---|{'---|' * len(logits)}")
    for name, settings in SETTINGS.items():
        times = [milliseconds(settings, values, history, arguments.runs) for values in logits.values()]
        print(f"| {name} | {' | '.join(f'{time:.2f}' for time in times)} |")


if __name__ == "__main__":
    main()
