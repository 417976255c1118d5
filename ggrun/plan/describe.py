"""A plan as rows a person reads: unit by unit, where it runs, with which kernels, and what one token costs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggrun.plan.device import Segment
from ggrun.plan.placement import ranges
from ggrun.plan.planner import Plan

_INDEX = re.compile(r"^layer\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A unit, or the same unit of several layers: `layer.0-15.attn`. Bytes are of all of them together."""

    unit: str
    device: str
    kernels: tuple[str, ...]
    weight_bytes: int
    kv_bytes: int


def unit_rows(plan: Plan) -> list[UnitRow]:
    """One row for every kind of unit and device, in the order of the program, with all kernels its layers use."""
    rows: dict[tuple[str, str], list[tuple[int, UnitRow]]] = {}
    for segment in plan.segments:
        for unit in segment.units:
            row = _row(plan, segment, unit)
            match = _INDEX.match(unit)
            index, kind = (int(match[1]), f"layer.{{}}.{match[2]}") if match else (0, unit)
            rows.setdefault((kind, row.device), []).append((index, row))
    return [
        UnitRow(
            kind.format(ranges([i for i, _ in group])),
            device,
            tuple(dict.fromkeys(kernel for _, row in group for kernel in row.kernels)),
            sum(row.weight_bytes for _, row in group),
            sum(row.kv_bytes for _, row in group),
        )
        for (kind, device), group in rows.items()
    ]


def token_bytes(plan: Plan) -> int:
    """Weight bytes one generated token reads: every matrix once, a mixture's chosen experts only, one row of the embedding."""
    total = 0.0
    for op in plan.program.ops:
        for name in op.weights:
            weight = plan.program.weights[name]
            share = 1.0
            if op.kind == "embed":
                share = 1 / weight.n_rows
            elif op.kind == "expert_linear":
                share = op.params.n_used / op.params.n_expert  # type: ignore[union-attr]
            total += weight.n_bytes * share
    return round(total)


def _row(plan: Plan, segment: Segment, unit: str) -> UnitRow:
    steps = [s for s in segment.lowered.steps if s.unit == unit]
    weights = {name for s in steps for name in s.weights}
    kv = sum(plan.shape.n_kv_blocks * segment.kv[s.name].block_bytes for s in plan.program.states.values() if s.unit == unit)
    kernels = tuple(dict.fromkeys(s.kernel for s in steps))
    return UnitRow(unit, segment.device, kernels, sum(plan.program.weights[n].n_bytes for n in weights), kv)
