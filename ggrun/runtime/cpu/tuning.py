"""Measures how fast this machine's processor runs ggrun's own kernels, in about two seconds: what plans predict from.

One small program has a step of every kind that matters; each is run by itself, a few times, and the best counts.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.plan.machine import Speeds
from ggrun.plan.planner import Request, make_plan
from ggrun.program.builder import Builder
from ggrun.program.params import Attention
from ggrun.program.program import Program
from ggrun.program.verify import verify
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cpu.executor import CpuExecutor
from ggrun.runtime.executor import Batch, Progress
from quant.format import Format, format_by_name
from quant.reference import quantize

WIDTH, ROWS, VOCABULARY = 4096, 2048, 65536  # the last matrix has 144 MiB: more than caches hold
TOKENS, DEPTH = 256, 1024  # of a prompt, and of its context at its end
KINDS = {"q8_k": "Q4_K", "q8_0": "Q8_0", "f32": "F16"}  # activation -> the format that stands for it
HEADS = Attention("kv.0", 32, 8, 128, 128, 128**-0.5)
REPEATS = 3
ADDS = 16


class _Weight:
    """A matrix of equal rows, in private memory."""

    def __init__(self, name: str, n_rows: int, fmt: Format) -> None:
        self.name, self.format, self.dims = name, fmt, (WIDTH, n_rows)
        row = np.sin(np.arange(WIDTH, dtype=np.float32))[None]
        self.raw: NDArray[np.uint8] = np.tile(quantize(fmt, row).reshape(1, -1).view(np.uint8), (n_rows, 1))
        self.row_bytes = fmt.row_bytes(WIDTH)

    @property
    def n_bytes(self) -> int:
        return int(self.raw.nbytes)

    @property
    def address(self) -> int:
        return int(self.raw.ctypes.data)

    def read(self, start: int, target: memoryview) -> None:
        target[:] = self.raw.reshape(-1).data[start : start + len(target)]

    def release(self) -> None:
        """There is no file to go back to."""


def measure(n_threads: int, progress: Progress | None = None) -> Speeds:
    """The processor's speeds with a team of n_threads."""
    weights = {f"{kind}.weight": _Weight(f"{kind}.weight", ROWS, format_by_name(fmt)) for kind, fmt in KINDS.items()}
    for name, n_rows, kind in (("embedding", VOCABULARY, "Q4_K"), ("k.weight", 1024, "Q8_0"), ("head.weight", VOCABULARY, "Q4_K")):
        weights[name] = _Weight(name, n_rows, format_by_name(kind))
    program = _program(weights)
    device = CpuDevice()
    request = Request(n_ctx=DEPTH, n_ubatch=TOKENS, n_threads=n_threads, reuse=False)
    plan = make_plan(program, device, request, DEPTH, {"weights": 0}, 1 << 50)
    segment = plan.segments[0]
    executor = CpuExecutor(program, segment, plan.shape, weights, n_threads, n_threads, device, progress)
    try:
        executor.settle()
        steps = segment.lowered.steps
        at = {name: index for index, step in enumerate(steps) for name in (*step.weights[:1], step.kernel)}
        executor.run(_batch(TOKENS))

        def best(first: int, last: int) -> float:
            times = []
            for _ in range(REPEATS):
                start = perf_counter()
                executor.run_stage(first, last)
                times.append(perf_counter() - start)
            return min(times)

        def of(name: str) -> float:
            return best(at[name], at[name] + 1)

        products = {kind: 2 * TOKENS * WIDTH * ROWS / of(f"{kind}.weight") for kind in KINDS}
        attended = 2 * HEADS.n_head * (HEADS.head_dim_k + HEADS.head_dim_v) * TOKENS * (DEPTH - TOKENS / 2)
        attention = attended / of("attention")
        executor.run(_batch(1))
        read = weights["head.weight"].n_bytes / of("head.weight")
        first = next(index for index, step in enumerate(steps) if step.kernel == "add")
        step = best(first, first + ADDS) / ADDS
    finally:
        executor.close()
    return Speeds(read, products, step, attention, measured=datetime.now(UTC).isoformat(timespec="seconds"))


def _program(weights: dict[str, _Weight]) -> Program:
    builder = Builder(weights, VOCABULARY)
    with builder.unit("layer.0.attn"):
        x = builder.embed("embedding", WIDTH)
        for kind in KINDS:
            builder.linear(x, kind, ROWS)
        k = builder.linear(x, "k", HEADS.n_head_kv * HEADS.head_dim_k)
        y = builder.attention(x, k, k, HEADS)
        for _ in range(ADDS):
            y = builder.add(y, x)
    with builder.unit("head"):
        builder.output(builder.linear(builder.take_rows(y), "head", VOCABULARY))
    return verify(builder.build())


def _batch(n: int) -> Batch:
    """The last n tokens of a context of DEPTH."""
    at = np.arange(DEPTH - n, DEPTH, dtype=np.int32)
    table = np.arange(1, 1 + DEPTH // KV_BLOCK_TOKENS, dtype=np.int32)[None]
    return Batch(at % VOCABULARY, at, np.zeros(n, np.int32), table, np.array([n - 1], np.int32))
