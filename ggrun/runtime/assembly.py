"""From a plan to the executor that runs it: one for each segment, and over several of them, or over a part of the program, a hybrid.

Memory is reserved on every device before the first weight is read. The one place that knows which device a segment is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ggrun.plan.device import Device, Segment
from ggrun.plan.planner import Plan
from ggrun.program.program import TensorLike
from ggrun.runtime.cpu.bind import Tensor as CpuTensor
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cuda.device import CudaDevice
from ggrun.runtime.executor import Executor, Progress, SegmentExecutor
from ggrun.runtime.hybrid import HybridExecutor


class Tensor(CpuTensor, TensorLike, Protocol):
    """A weight in the file, as every executor needs it."""


def assemble(
    plan: Plan,
    devices: Mapping[str, Device],
    tensors: Mapping[str, Tensor],
    n_threads: int,
    n_threads_batch: int,
    progress: Progress | None = None,
    load_weights: Callable[[], None] | None = None,
) -> Executor:
    """The executor of a plan, ready to run. devices: by the names of the plan's segments.

    load_weights: brings the CPU's weights to memory, called when all memory is reserved. Raises GgrunError when memory is short.
    """
    from ggrun.runtime.cpu.executor import CpuExecutor

    made: dict[int, SegmentExecutor] = {}
    try:
        for index, segment in sorted(enumerate(plan.segments), key=lambda item: devices[item[1].device].kind == "cpu"):
            device = devices[segment.device]
            if isinstance(device, CudaDevice):
                made[index] = _reserved(plan, index, device)
            else:
                assert isinstance(device, CpuDevice)
                made[index] = CpuExecutor(
                    plan.program, segment, plan.shape, tensors, n_threads, n_threads_batch, device, progress, load_weights
                )
        executors = [made[index] for index in range(len(plan.segments))]
        _load(plan, executors, tensors, progress)
    except BaseException:
        for executor in sorted(made.values(), key=lambda e: e.in_host_memory):
            executor.close()
        raise
    if len(executors) == 1:
        return executors[0]  # type: ignore[return-value]  # each runs whole programs, too
    return HybridExecutor(plan.program, plan.segments, plan.stages, executors, plan.prompt_stages, plan.prompt_from)


def _reserved(plan: Plan, index: int, device: CudaDevice) -> SegmentExecutor:
    from ggrun.runtime.cuda.executor import CudaExecutor

    ranges = [(stage.first, stage.last) for stage in plan.stages if stage.segment == index]
    prompt = [stage for stage in plan.prompt_stages if stage.segment == index]
    return CudaExecutor(plan.program, plan.segments[index], plan.shape, device, ranges, prompt)


def _load(plan: Plan, made: list[SegmentExecutor], tensors: Mapping[str, Tensor], progress: Progress | None) -> None:
    """Fill the GPUs, counting the bytes of all together, and let them pin the CPU's buffers."""
    from ggrun.runtime.cpu.executor import CpuExecutor
    from ggrun.runtime.cuda.executor import CudaExecutor

    kept = frozenset(name for executor, segment in zip(made, plan.segments) if executor.in_host_memory for name in _weights(segment))
    read = next((executor.read_weight for executor in made if isinstance(executor, CpuExecutor)), None)
    total = sum(tensors[name].n_bytes for segment in plan.segments for name in segment.weights)
    before = 0
    for executor, segment in zip(made, plan.segments):
        if isinstance(executor, CudaExecutor):
            executor.load(tensors, kept, _shifted(progress, before, total), read=read)
            before += sum(tensors[name].n_bytes for name in segment.weights)
            for other in made:
                if isinstance(other, CpuExecutor):
                    executor.pin(*other.scratch)


def _weights(segment: Segment) -> set[str]:
    return {name for step in segment.steps for name in step.weights}


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one of several devices as a part of all of them."""
    if progress is None:
        return None

    def report(stage: str, done: int, of: int) -> None:
        progress(stage, *((before + done, total) if stage == "load" else (done, of)))

    return report
