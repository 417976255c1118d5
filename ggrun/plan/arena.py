"""Packs buffers into one arena by lifetime: two buffers may share bytes only when no step needs both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ggrun.plan.device import Lowered
from ggrun.program.program import Program

ALIGN = 64  # bytes; a cache line and the widest vector


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes needed from step `first` to step `last`, both included, and again in the steps `again`."""

    name: str
    n_bytes: int
    first: int
    last: int
    again: tuple[int, ...] | range = ()

    @property
    def steps(self) -> list[int]:
        return [*range(self.first, self.last + 1), *self.again]


def align(n: int, to: int = ALIGN) -> int:
    return -(-n // to) * to


def spans(
    program: Program,
    lowered: Lowered,
    n_rows: Mapping[str, int],
    reuse: bool = True,
    crossing: Mapping[str, tuple[int, int]] | None = None,
) -> list[Span]:
    """Lifetimes of all buffers and work areas of a segment. n_rows: {"T": ..., "R": ...}.

    Inputs and outputs of the program live throughout, as do work areas no step names; with reuse=False (trace) everything does.
    crossing: steps that a buffer lives through besides those that name it, the first and the last, as it comes from or goes to a device.
    """
    used: dict[str, list[int]] = {}
    for index, step in enumerate(lowered.steps):
        for name in step.inputs + step.outputs:
            used.setdefault(name, []).append(index)
    end = len(lowered.steps)
    result = []
    for name, n_bytes in lowered.work.items():
        at = used.get(name, [0, end]) if reuse else [0, end]
        result.append(Span(name, n_bytes, at[0], at[-1]))
    for name, buffer in program.buffers.items():
        if name in used:
            whole = not reuse or buffer.role != "scratch"
            first, last = (0, end) if whole else (used[name][0], used[name][-1])
            if crossing and name in crossing:
                first, last = min(first, crossing[name][0]), max(last, crossing[name][1])
            result.append(Span(name, n_rows[buffer.rows] * buffer.row_bytes, first, last))
    return result


def either(first: list[Span], second: list[Span]) -> list[Span]:
    """Spans of two lists of steps of which either runs, never both: a name has the same bytes in them, for whatever stays there."""
    start = 1 + max((span.last for span in first), default=0)
    merged = {span.name: span for span in first}
    for span in second:
        again = range(start + span.first, start + span.last + 1)
        other = merged.get(span.name)
        if other is None:
            merged[span.name] = Span(span.name, span.n_bytes, again[0], again[-1])
        else:
            merged[span.name] = Span(span.name, max(span.n_bytes, other.n_bytes), other.first, other.last, again)
    return list(merged.values())


def pack(items: Iterable[Span], to: int = ALIGN) -> tuple[dict[str, int], int]:
    """Offsets by name, multiples of `to`, and the arena's size: largest first, each at the lowest offset free during its lifetime."""
    items = list(items)
    placed: list[tuple[Span, int]] = []
    alive: list[list[int]] = [[] for _ in range(1 + max((span.steps[-1] for span in items), default=0))]  # placed, by their steps
    for span in sorted(items, key=lambda s: (-s.n_bytes, s.first, s.name)):
        offset = 0
        steps = span.steps
        beside = {index for step in steps for index in alive[step]}
        for other, start in sorted((placed[index] for index in beside), key=lambda p: p[1]):
            if offset + align(span.n_bytes, to) <= start:
                break
            offset = max(offset, start + align(other.n_bytes, to))
        for step in steps:
            alive[step].append(len(placed))
        placed.append((span, offset))
    size = max((start + align(span.n_bytes, to) for span, start in placed), default=0)
    return {span.name: start for span, start in placed}, size
