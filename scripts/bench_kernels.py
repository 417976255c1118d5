#!/usr/bin/env python3
"""Speed of the CPU kernels on one thread, by format and tier, on random weights.

    gemv     one token, weights streamed from memory: GB/s of weights, and as a share of the read bandwidth measured alternately
    cached   one token, weights in the cache (3 MB): what the instructions alone allow
    gemm     many tokens: GFLOP/s (two operations a weight and token), for each --tokens

Times are the thread's own CPU time, the median of short runs. Example: scripts/bench_kernels.py --formats Q4_K,Q6_K --tokens 8,512
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from quant import cpu
from quant.format import FORMATS, Format, format_by_name

K = 4096


def buffer(n_bytes: int) -> np.ndarray:
    """uint8[n_bytes], aligned to a page, touched."""
    raw = np.zeros(n_bytes + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + n_bytes]


def kernel(address: int, n: int) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n)(address)


def seconds(run: Callable[[], object], budget: float) -> float:
    """Median CPU time of a run, repeated for about `budget` seconds."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return statistics.median(times)


class Case:
    """One format on one tier with weights of n_rows rows."""

    def __init__(self, fmt: Format, tier: str, n_rows: int) -> None:
        self.kernel = cpu.matmul_kernel(fmt, tier)
        self.rows = kernel(self.kernel.address, 10)
        self.activation = cpu.activation_kernel(self.kernel.activation, tier)
        self.quantize = kernel(self.activation.address, 8)
        self.n_rows, self.row_bytes = n_rows, fmt.row_bytes(K)
        self.w = buffer(n_rows * self.row_bytes)
        self.w[:] = np.random.default_rng(0).integers(40, 60, 1 << 16, np.uint8).repeat(-(-self.w.size // (1 << 16)))[: self.w.size]

    def time(self, n_tokens: int, budget: float) -> float:
        """Seconds of one product, without quantizing the activations."""
        x = np.random.default_rng(1).standard_normal((n_tokens, K)).astype(np.float32)
        acts, out = buffer(self.activation.bytes(K, n_tokens)), buffer(4 * n_tokens * self.n_rows)
        scratch = buffer(self.kernel.scratch_bytes(K, n_tokens))
        self.quantize(x.ctypes.data, 4 * K, 0, 0, n_tokens, K, n_tokens, acts.ctypes.data)
        arguments = (self.w.ctypes.data, self.row_bytes, 0, self.n_rows, K, acts.ctypes.data, n_tokens, out.ctypes.data, 4 * self.n_rows)
        return seconds(lambda: self.rows(*arguments, scratch.ctypes.data), budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(fmt.name for fmt in FORMATS.values()))
    parser.add_argument("--tiers", default=",".join(cpu.tiers()))
    parser.add_argument("--tokens", default="512", help="token counts of the gemm columns")
    parser.add_argument("--budget", type=float, default=0.15, help="seconds a figure")
    options = parser.parse_args()
    tokens = [int(n) for n in options.tokens.split(",")]
    print(f"{'format':8}{'tier':8}{'gemv GB/s':>10}{'of read':>9}{'cached':>9}", *(f"{f'gemm {n}':>10}" for n in tokens), sep="")
    source = np.zeros(96 << 20, np.uint8).view(np.int64)
    source += 1
    for name in options.formats.split(","):
        fmt = format_by_name(name)
        for tier in options.tiers.split(","):
            big, small = Case(fmt, tier, (96 << 20) // fmt.row_bytes(K)), Case(fmt, tier, (3 << 20) // fmt.row_bytes(K))
            read = source.nbytes / seconds(lambda: source.max(), options.budget) / 1e9
            gemv = big.w.nbytes / big.time(1, options.budget) / 1e9
            cached = small.w.nbytes / small.time(1, options.budget) / 1e9
            gemm = [2e-9 * n * K * small.n_rows / small.time(n, options.budget) for n in tokens]
            figures = "".join(f"{value:10.0f}" for value in gemm)
            print(f"{name:8}{tier:8}{gemv:10.1f}{gemv / read:9.0%}{cached:9.1f}{figures}", flush=True)


if __name__ == "__main__":
    main()
