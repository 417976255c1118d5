"""What a plan could be instead: one more layer on the GPU, a smaller KV cache, half the context. Pure: names the changes, plans nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ggrun.plan.pins import Pins
from ggrun.plan.placement import parts_of
from ggrun.plan.planner import CTX_STEP, Plan, Request


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs; `flags` are the words for it. n_ctx, kv_tokens: as in a Request."""

    what: str
    flags: tuple[str, ...]
    n_ctx: int
    type_k: str
    type_v: str
    n_gpu_layers: int | None
    kv_tokens: int = 0


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
    now = Request(shape.n_ctx if shape.shared else shape.n_ctx * shape.n_seqs, kv_tokens=shape.kv_tokens if shape.shared else 0)
    same = Change("", (), now.n_ctx, shape.type_k, shape.type_v, pins.n_gpu_layers, now.kv_tokens)
    if plan.choice and plan.choice.gpus:
        n, most = plan.choice.n_gpu_layers, parts_of(plan.program).most
        if n < most:
            yield replace(same, what="one more layer", flags=("-ngl", str(n + 1)), n_gpu_layers=n + 1)
        if n > 0 and pins.n_gpu_layers is not None:
            yield replace(same, what="one layer less", flags=("-ngl", str(n - 1)), n_gpu_layers=n - 1)
    if (shape.type_k, shape.type_v) == ("f16", "f16"):
        yield replace(same, what="q8_0 KV", flags=("-ctk", "q8_0", "-ctv", "q8_0"), type_k="q8_0", type_v="q8_0")
    half = now.n_tokens // 2 // CTX_STEP * CTX_STEP
    if half:
        less = now.sized(half)
        yield replace(same, what="half the context", flags=tuple(less.context_words), n_ctx=less.n_ctx, kv_tokens=less.kv_tokens)
