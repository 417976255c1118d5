"""What a plan could be instead: one more layer on the GPU, a smaller KV cache, half the context. Pure: names the changes, plans nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ggrun.plan.pins import Pins
from ggrun.plan.placement import parts_of
from ggrun.plan.planner import CTX_STEP, Plan


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs; `flags` are the words for it. n_ctx counts the tokens of all sequences together."""

    what: str
    flags: tuple[str, ...]
    n_ctx: int
    type_k: str
    type_v: str
    n_gpu_layers: int | None


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another plan in one line: what differs, the words for it, what each device would hold, predicted tokens a second; or why not."""

    what: str
    flags: str
    used: Mapping[str, int]
    fits: bool
    layers: int | None
    prompt: float
    answer: float


def changes(plan: Plan, pins: Pins) -> Iterator[Change]:
    shape = plan.shape
    n_ctx, layers = shape.n_ctx * shape.n_seqs, pins.n_gpu_layers
    if plan.choice and plan.choice.gpus:
        n, most = plan.choice.n_gpu_layers, parts_of(plan.program).most
        if n < most:
            yield Change("one more layer", ("-ngl", str(n + 1)), n_ctx, shape.type_k, shape.type_v, n + 1)
        if n > 0 and pins.n_gpu_layers is not None:
            yield Change("one layer less", ("-ngl", str(n - 1)), n_ctx, shape.type_k, shape.type_v, n - 1)
    if (shape.type_k, shape.type_v) == ("f16", "f16"):
        yield Change("q8_0 KV", ("-ctk", "q8_0", "-ctv", "q8_0"), n_ctx, "q8_0", "q8_0", layers)
    half = n_ctx // 2 // CTX_STEP * CTX_STEP
    if half:
        yield Change("half the context", ("-c", str(half)), half, shape.type_k, shape.type_v, layers)
