"""The rows a model's head takes, before and after its norm: what embeddings are pooled from. Knows no device.

Executors compute what comes before the head (`run_hidden`); its norm is applied here, by the reference's ops, to rows in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import Segment, Stage, Step
from ggrun.program.program import Op, Program
from ggrun.runtime.executor import Batch
from ggrun.runtime.reference import OPS, RawTensor, ReferenceExecutor

TAKE = "take_rows"  # where the head begins: the op's kind, and the name of its kernel on every device


def residual(program: Program) -> str:
    """The buffer [T, n_embd] that the head takes rows of."""
    return next(op for op in program.ops if op.kind == TAKE).inputs[0]


def head_step(steps: Sequence[Step]) -> int:
    """The first step of the head among steps; their number where it is not among them."""
    return next((index for index, step in enumerate(steps) if step.kernel == TAKE), len(steps))


def before_head(stages: Sequence[Stage], segments: Sequence[Segment]) -> tuple[Stage, ...]:
    """The stages without the steps of the head."""
    cut = [replace(s, last=s.first + head_step(segments[s.segment].steps[s.first : s.last])) for s in stages]
    return tuple(stage for stage in cut if stage.first < stage.last)


class HeadNorm:
    """What the program does to the rows between taking them and the output matrix."""

    def __init__(self, program: Program, tensors: Mapping[str, RawTensor]) -> None:
        self._ops = _between(program)
        self._weights = ReferenceExecutor(program, tensors, 0)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, n_embd] -> [n, n_embd]."""
        none = np.zeros(0, np.int32)
        batch = Batch(none, none, none, none.reshape(0, 0), none)
        values = {self._ops[0].inputs[0]: rows} if self._ops else {}
        result = rows
        for op in self._ops:
            values.update(zip(op.outputs, OPS[op.kind](self._weights, op, batch, [values[name] for name in op.inputs])))  # type: ignore[arg-type]
            result = values[op.outputs[-1]]
        return result


def _between(program: Program) -> list[Op]:
    start = next(index for index, op in enumerate(program.ops) if op.kind == TAKE)
    found: list[Op] = []
    for op in program.ops[start + 1 :]:
        if op.kind == "linear":
            break
        found.append(op)
    return found
