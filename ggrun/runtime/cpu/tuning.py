"""Measures how fast this machine's processor runs ggrun's own kernels, in about two seconds: what plans predict from.

Each step of the yardstick's program is run by itself, a few times, and the best counts.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter

import numpy as np

from ggrun.plan.machine import Speeds
from ggrun.plan.planner import Request, make_plan
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cpu.executor import CpuExecutor
from ggrun.runtime.executor import Progress
from ggrun.runtime.yardstick import ADDS, KINDS, Sizes, Weight, batch_of, program_of, weights_of

REPEATS = 3
PIECE_BYTES = 8 << 20  # what is copied at once when weights are streamed to a GPU


def measure(n_threads: int, progress: Progress | None = None) -> Speeds:
    """The processor's speeds with a team of n_threads."""
    sizes = Sizes()
    weights = weights_of(sizes)
    program = program_of(sizes, weights)
    device = CpuDevice()
    request = Request(n_ctx=sizes.depth, n_ubatch=sizes.tokens, n_threads=n_threads, reuse=False)
    plan = make_plan(program, device, request, sizes.depth, {"weights": 0}, 1 << 50)
    segment = plan.segments[0]
    executor = CpuExecutor(program, segment, plan.shape, weights, n_threads, n_threads, device, progress)
    try:
        executor.settle()
        steps = segment.lowered.steps
        at = {name: index for index, step in enumerate(steps) for name in (*step.weights[:1], step.kernel)}
        executor.run(batch_of(sizes, sizes.tokens))

        def best(first: int, last: int) -> float:
            times = []
            for _ in range(REPEATS):
                start = perf_counter()
                executor.run_stage(first, last)
                times.append(perf_counter() - start)
            return min(times)

        def of(name: str) -> float:
            return best(at[name], at[name] + 1)

        products = {kind: sizes.product_flops / of(f"{kind}.weight") for kind in KINDS}
        attention = sizes.attention_flops / of("attention")
        executor.run(batch_of(sizes, 1))
        head = weights["head.weight"]
        read = head.n_bytes / of("head.weight")
        copy = _copied(head)
        first = next(index for index, step in enumerate(steps) if step.kernel == "add")
        step = best(first, first + ADDS) / ADDS
    finally:
        executor.close()
    return Speeds(read, products, step, attention, copy=copy, measured=datetime.now(UTC).isoformat(timespec="seconds"))


def _copied(weight: Weight) -> float:
    """Bytes a second that one thread copies."""
    target, times = np.zeros(PIECE_BYTES, np.uint8), []
    for start in range(0, weight.n_bytes - PIECE_BYTES, PIECE_BYTES):
        begin = perf_counter()
        weight.read(start, target.data)
        times.append(perf_counter() - begin)
    return PIECE_BYTES / sorted(times)[len(times) // 2]
