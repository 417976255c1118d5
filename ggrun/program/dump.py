"""A Program as text, one line an op: what `ggrun trace` and a puzzled reader look at."""

from __future__ import annotations

from collections.abc import Iterator

from ggrun.program.program import Program


def dump(program: Program) -> Iterator[str]:
    """Yield lines: unit headers, then `out[rows, width] = kind(inputs; weights) params`."""
    unit = ""
    for op in program.ops:
        if op.unit != unit:
            unit = op.unit
            yield f"{unit}:"
        outs = ", ".join(f"{n}[{program.buffers[n].rows}, {program.buffers[n].width}]" for n in op.outputs)
        weights = "".join(f"; {n} {program.weights[n].format.name}" for n in op.weights)
        yield f"  {outs} = {op.kind}({', '.join(op.inputs)}{weights})  {op.params}"
