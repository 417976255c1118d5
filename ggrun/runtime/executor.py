"""The protocol every executor follows and the batch it runs; knows no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]  # (stage, done, total); stages "compile", "compile for the GPU", "load"


class Cancelled(Exception):
    """`abort` stopped a running batch; its KV cells hold unfinished values until the same tokens are run again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of any number of sequences; one sequence's tokens are consecutive and in rising position.

    ids, positions, seqs: int32 [T]; seqs are rows of `tables`. tables: int32 [n, max_blocks], KV block ids of each sequence in
    order of position (position p lives in block tables[s, p // KV_BLOCK_TOKENS]). out_rows: int32 [R], rows whose logits are wanted.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    seqs: NDArray[np.int32]
    tables: NDArray[np.int32]
    out_rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Highest:
    """The k highest logits of each wanted row, in falling order (of equal ones the lower id first), and what they were chosen from.

    ids: int32 [R, k]; logits: float32 [R, k]; log_totals: float64 [R], the logarithm of the sum of exp over all of a row's logits.
    """

    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    log_totals: NDArray[np.float64]


class Executor(Protocol):
    """Runs batches of a whole program. Not thread-safe but for `abort`."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about how it was made."""
        ...

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Store the batch's keys and values and return logits [R, n_vocab], valid until the next run. Raises Cancelled after abort."""
        ...

    def run_highest(self, batch: Batch, k: int) -> NDArray[np.float32] | Highest:
        """`run` for a caller that looks at the k highest logits only; all of them where that is no dearer, or where one is not finite."""
        ...

    def abort(self) -> None:
        """Stop the running batch within 200 ms or, when none runs, the next one at once; may be called from any thread."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block of every layer (used when sequences that share a prefix part inside a block)."""
        ...

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """Every layer's part of a KV block, in the form of `runtime.kv_form`, uint8 [KvForm.n_bytes]; waits for what was asked before."""
        ...

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Fill a KV block with what `read_block` gave, here or on another device; `data` may change when it returns."""
        ...

    def run_hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Store the batch's keys and values and return what the program's head takes, float32 [T, n_embd], valid until the next run.

        The batch wants no rows of logits. Raises Cancelled after abort. See `runtime.hidden`.
        """
        ...

    def settle(self) -> None:
        """Wait until the weights lie where they stay: what is measured after that is the steady speed."""
        ...

    def close(self) -> None:
        """Stop threads and free all memory; may be called twice."""
        ...


class SegmentExecutor(Protocol):
    """Runs one segment of a plan, stage by stage; what `hybrid` is made of. Not thread-safe but for `abort`."""

    in_host_memory: bool
    """Whether `rows` without `into` gives the buffer itself, which others may then fill or copy from."""

    @property
    def notes(self) -> list[str]: ...

    @property
    def allocated_bytes(self) -> int:
        """Bytes taken on the segment's device: what the ledger lists for it."""
        ...

    def start(self, batch: Batch) -> None:
        """Take a batch's ids, positions, tables and wanted rows; the stages that follow are about it."""
        ...

    def stream(self) -> None:
        """Begin to bring the weights that the plan's stages for long prompts stream to it; those stages follow, in order."""
        ...

    def run_stage(self, first: int, last: int) -> None:
        """Do steps first..last-1; may return before they are done. Raises Cancelled after abort."""
        ...

    def rows(self, name: str, n_rows: int, into: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
        """The first n_rows of a buffer, [n_rows, width], as the last stage left it, once they are there.

        into: an array of that shape to put them in; else the executor's own memory, good until its next call.
        """
        ...

    def highest(self, n_rows: int, k: int) -> Highest | None:
        """The k highest logits of each row that the last stage left; None where all of them are as near, or one is not finite."""
        ...

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Fill the first rows of a buffer; may return before `array` was read, see `fence`."""
        ...

    def fence(self) -> None:
        """Wait until everything asked of it is done: arrays given to `put` may change, abort has been noticed."""
        ...

    def abort(self) -> None: ...

    def resume(self) -> None:
        """Forget an abort that nothing has noticed yet."""
        ...

    def copy_block(self, source: int, target: int) -> None: ...

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """Fill the parts of this segment's layers; the others' stay as they are."""
        ...

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """Take the parts of this segment's layers."""
        ...

    def settle(self) -> None: ...

    def close(self) -> None: ...
