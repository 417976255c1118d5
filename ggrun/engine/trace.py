"""`ggrun trace`: run one batch on an executor and on the NumPy reference, and compare every buffer of the program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.loading import Options, make_executor, plan_model
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program.program import Buffer
from ggrun.runtime.executor import Batch, Executor, Progress
from ggrun.runtime.reference import ReferenceExecutor


@dataclass(frozen=True, slots=True)
class TraceRow:
    """How far a buffer is from the reference: nmse is squared error over squared reference, max_abs the largest difference."""

    unit: str
    kind: str
    buffer: str
    shape: tuple[int, int]
    nmse: float
    max_abs: float


class Traceable(Executor, Protocol):
    """An executor whose buffers can be read after a run."""

    def read_buffer(self, name: str, n_rows: int) -> NDArray[np.float32] | NDArray[np.int32]: ...


def trace(model: str | Path | None, ids: Sequence[int], progress: Progress | None = None) -> Iterator[TraceRow]:
    """Yield one row an op output, in program order, for one batch of token ids on the CPU executor. Raises GgrunError."""
    n = len(ids)
    if not 1 <= n <= 512:
        raise GgrunError(f"trace compares one batch of 1 to 512 tokens, not {n}")
    planned = plan_model(model, Options(n_ctx=max(KV_BLOCK_TOKENS, n), n_ubatch=n, n_logits=n, executor="cpu", reuse=False))
    try:
        if not all(0 <= i < planned.spec.n_vocab for i in ids):
            raise GgrunError(f"a token id is outside the model's vocabulary of {planned.spec.n_vocab}")
        at = np.arange(n, dtype=np.int32)
        table = np.arange(1, 1 + -(-n // KV_BLOCK_TOKENS), dtype=np.int32)[None]
        batch = Batch(np.array(ids, np.int32), at, np.zeros(n, np.int32), table, at)
        executor = cast(Traceable, make_executor("cpu", planned, progress))
        reference = ReferenceExecutor(planned.program, planned.file.tensors, planned.plan.shape.n_kv_blocks)
        try:
            executor.run(batch)
            reference.run(batch)
            for op in planned.program.ops:
                for name in op.outputs:
                    got = executor.read_buffer(name, n)
                    yield _compare(op.unit, op.kind, planned.program.buffers[name], got, reference.values[name])
        finally:
            executor.close()
            reference.close()
    finally:
        planned.file.close()


def _compare(
    unit: str, kind: str, buffer: Buffer, got: NDArray[np.float32] | NDArray[np.int32], want: NDArray[np.float32] | NDArray[np.int32]
) -> TraceRow:
    a, b = got.astype(np.float64).reshape(want.shape), want.astype(np.float64)
    power = float(np.square(b).sum())
    error = float(np.square(a - b).sum())
    nmse = error / power if power else error
    return TraceRow(unit, kind, buffer.name, (len(b), buffer.width), nmse, float(np.abs(a - b).max(initial=0.0)))
