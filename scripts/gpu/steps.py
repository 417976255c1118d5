"""Where a token's time goes on a GPU: every step of a model timed by the device's clock, and its share of what the card reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from ggrun.engine.loading import Options, load, plan_model
from ggrun.plan.cost import KV_BITS
from ggrun.plan.device import KV_BLOCK_TOKENS, Segment, Step
from ggrun.plan.pins import ALL, Pins
from ggrun.program import params as p
from ggrun.program.program import Program
from ggrun.runtime.cuda.executor import CudaExecutor
from ggrun.runtime.executor import Batch
from scripts.gpu.ceilings import Ceilings

REPEATS = 20


@dataclass
class Class:
    """Steps of one kind together, for one batch: seconds, bytes of weights and KV read, operations multiplied."""

    n: int = 0
    seconds: float = 0.0
    n_bytes: float = 0.0
    operations: float = 0.0
    kernels: set[str] = field(default_factory=set)

    def share(self, ceilings: Ceilings) -> float:
        """Of the time the card itself would need at least, reading and multiplying at once."""
        rate = ceilings.int8 or ceilings.single
        return max(self.n_bytes / ceilings.read, self.operations / rate) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """A batch of n_tokens behind a context: its classes, all its steps one by one, and the same as one graph or queue."""

    n_tokens: int
    depth: int
    classes: Mapping[str, Class]
    whole: float  # seconds of the stage as it runs


def profile(path: Path, batches: list[tuple[int, int]], n_ctx: int, type_kv: str = "f16") -> tuple[float, int, list[Profile]]:
    """Of a model all on the first GPU: seconds of loading, bytes uploaded, and the profiles.

    batches: (tokens, tokens of context before them); the cells hold what memory held.
    """
    options = Options(n_ctx=n_ctx, n_ubatch=512, placement=Pins(n_gpu_layers=ALL, devices=("CUDA0",)), type_k=type_kv, type_v=type_kv)
    planned = plan_model(path, options)
    begin = perf_counter()
    planned, executor = load(planned, options, None)
    seconds = perf_counter() - begin
    n_bytes = sum(segment.weight_bytes for segment in planned.plan.segments)
    with planned.file:
        part, stage = _on_gpu(executor, planned.plan)
        segment = planned.plan.segments[stage.segment]
        result = [_profile(part, segment, planned.program, (stage.first, stage.last), n, depth, type_kv) for n, depth in batches]
        executor.close()
    return seconds, n_bytes, result


def _on_gpu(executor: object, plan: object) -> tuple[CudaExecutor, object]:
    """The GPU's executor of a plan, alone or in a hybrid beside the CPU's embedding, and its longest stage."""
    executors = [executor] if isinstance(executor, CudaExecutor) else executor._executors  # type: ignore[attr-defined]
    stages = [stage for stage in plan.stages if isinstance(executors[stage.segment], CudaExecutor)]  # type: ignore[attr-defined]
    stage = max(stages, key=lambda stage: stage.last - stage.first)
    return executors[stage.segment], stage


def _profile(part: CudaExecutor, segment: Segment, program: Program, steps: tuple[int, int], n: int, depth: int, type_kv: str) -> Profile:
    positions = np.arange(depth, depth + n, dtype=np.int32)
    table = np.arange(1, 1 + -(-(depth + n) // KV_BLOCK_TOKENS), dtype=np.int32)[None]
    part.start(Batch(positions % 97, positions, np.zeros(n, np.int32), table, np.array([n - 1], np.int32)))
    part.run_stage(*steps)
    part.fence()
    classes: dict[str, Class] = {}
    for index in range(*steps):
        step = segment.lowered.steps[index]
        kind = classes.setdefault(_kind(step), Class())
        kind.n += 1
        kind.kernels.add(step.kernel)
        kind.seconds += part.seconds(index, index + 1, REPEATS)
        _count(kind, step, program, n, depth, type_kv)
    return Profile(n, depth, classes, part.seconds(*steps, REPEATS))


def _kind(step: Step) -> str:
    head = step.kernel.split(".")[0]
    return head if head in ("matmul", "gated", "experts", "attention", "embed") else "small"


def _count(kind: Class, step: Step, program: Program, n: int, depth: int, type_kv: str) -> None:
    for name in step.weights:
        weight = program.weights[name]
        if len(weight.dims) > 1 and kind is not None and not step.kernel.startswith("embed"):
            rows = 1 if step.unit == "head" else n
            kind.n_bytes += weight.n_bytes
            kind.operations += 2 * weight.dims[0] * weight.n_rows * rows
    if isinstance(step.params, p.Attention):
        a, length = step.params, depth + n
        kind.n_bytes += length * a.n_head_kv * (a.head_dim_k + a.head_dim_v) * KV_BITS[type_kv] / 8
        kind.operations += 2 * n * (depth + n / 2) * a.n_head * (a.head_dim_k + a.head_dim_v)


def table(profiles: list[Profile], ceilings: Ceilings) -> str:
    """A Markdown table: a row a class and batch."""
    rows = ["| batch | class | steps | us | share of the sum | GB/s | TOP/s | of the ceiling |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for one in profiles:
        name = f"{one.n_tokens} tokens @ d{one.depth}"
        total = sum(c.seconds for c in one.classes.values())
        for kind, c in sorted(one.classes.items(), key=lambda item: -item[1].seconds):
            rows.append(
                f"| {name} | {kind} ({', '.join(sorted(c.kernels)[:4])}) | {c.n} | {c.seconds * 1e6:.1f} | {c.seconds / total:.0%} "
                f"| {c.n_bytes / c.seconds / 1e9:.0f} | {c.operations / c.seconds / 1e12:.2f} | {c.share(ceilings):.0%} |"
            )
        rows.append(f"| {name} | as it runs | | {one.whole * 1e6:.1f} | {one.whole / total:.0%} | | | |")
    return "\n".join(rows)
