"""Runs a plan whose segments lie on several devices: stage after stage, moving to each what it takes from the others.

What crosses a cut is copied once: a GPU copies to and from the CPU's own buffers. Copies to a GPU are only queued; who owns the memory
they read waits for them before it is used again. Knows no device: executors of segments do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.device import Segment, Stage, Take
from ggrun.program.program import Program
from ggrun.runtime.executor import Batch, Cancelled, Highest, SegmentExecutor
from ggrun.runtime.hidden import before_head, residual

T = TypeVar("T")


class HybridExecutor:
    """Implements runtime.Executor over the executors of a plan's segments, which it owns.

    stages: the order of the plan. The last one writes the logits. prompt_stages: the order for batches of prompt_from tokens or more, if
    there is one of its own.
    """

    def __init__(
        self,
        program: Program,
        segments: Sequence[Segment],
        stages: Sequence[Stage],
        executors: Sequence[SegmentExecutor],
        prompt_stages: Sequence[Stage] = (),
        prompt_from: int = 0,
    ) -> None:
        self._program = program
        self._stages = tuple(stages)
        self._prompt_stages, self._prompt_from = tuple(prompt_stages), prompt_from
        self._executors = list(executors)
        self._segments = segments
        self._output = next(b.name for b in program.buffers.values() if b.role == "output")
        self._readers: list[set[int]] = [set() for _ in executors]  # who may still be copying from an executor's memory
        self._abort = False
        self._running: SegmentExecutor | None = None

    @property
    def notes(self) -> list[str]:
        return [note for executor in self._executors for note in executor.notes]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all devices together."""
        return sum(executor.allocated_bytes for executor in self._executors)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits float32 [R, n_vocab], valid until the next run. Raises Cancelled after abort."""
        logits = self._run(batch, 0)
        assert not isinstance(logits, Highest)
        return logits

    def run_highest(self, batch: Batch, k: int) -> NDArray[np.float32] | Highest:
        """Like `run`, or the k highest logits of each row when the last stage's device finds them."""
        return self._run(batch, k)

    def run_hidden(self, batch: Batch) -> NDArray[np.float32]:
        """What the head takes, [T, n_embd], an array of the caller's."""
        buffer = self._program.buffers[residual(self._program)]
        rows = np.empty((len(batch.ids), buffer.width), np.float32)

        def fetch(last: SegmentExecutor) -> NDArray[np.float32]:
            return last.rows(buffer.name, len(rows), rows).view(np.float32)

        return self._through(batch, fetch, lambda stages: before_head(stages, self._segments))

    def _run(self, batch: Batch, k: int) -> NDArray[np.float32] | Highest:
        def fetch(last: SegmentExecutor) -> NDArray[np.float32] | Highest:
            highest = last.highest(len(batch.out_rows), k) if k else None
            return last.rows(self._output, len(batch.out_rows)).view(np.float32) if highest is None else highest

        return self._through(batch, fetch)

    def _through(
        self, batch: Batch, fetch: Callable[[SegmentExecutor], T], cut: Callable[[Sequence[Stage]], Sequence[Stage]] = tuple
    ) -> T:
        """Run a batch's stages, or what `cut` leaves of them, and fetch something from the last one's executor."""
        try:
            for executor in self._executors:
                executor.start(batch)
            stages: Sequence[Stage] = self._stages
            if self._prompt_stages and len(batch.ids) >= self._prompt_from:
                stages = self._prompt_stages
                for executor in self._executors:
                    executor.stream()
            stages = cut(stages)
            for stage in stages:
                self._run_stage(stage, batch)
            last = self._executors[stages[-1].segment]
            result = fetch(last)
            for index, executor in enumerate(self._executors):
                if executor is not last:
                    self._release(index)
                    executor.fence()
            return result
        except (Cancelled, GgrunError):  # aborted, or streamed weights that cannot be read
            self._settle_abort()
            raise
        finally:
            self._running = None

    def _run_stage(self, stage: Stage, batch: Batch) -> None:
        target = self._running = self._executors[stage.segment]
        if self._abort:
            raise Cancelled
        self._release(stage.segment)
        for take in stage.takes:
            self._move(take, stage.segment, batch)
        target.run_stage(stage.first, stage.last)

    def _move(self, take: Take, to: int, batch: Batch) -> None:
        """Bring a buffer from the segment that holds it. The CPU's memory is copied to and from directly."""
        buffer = self._program.buffers[take.buffer]
        n_rows = len(batch.ids) if buffer.rows == "T" else len(batch.out_rows)
        source, target = self._executors[take.source], self._executors[to]
        if n_rows == 0:
            return
        if target.in_host_memory:
            source.rows(take.buffer, n_rows, target.rows(take.buffer, n_rows))
        else:
            self._release(take.source)
            target.put(take.buffer, source.rows(take.buffer, n_rows))
            self._readers[take.source].add(to)

    def _release(self, index: int) -> None:
        """Wait until nobody reads an executor's memory any more."""
        for reader in self._readers[index]:
            self._executors[reader].fence()
        self._readers[index].clear()

    def _settle_abort(self) -> None:
        """Leave nothing running and no flag set."""
        for executor in self._executors:
            executor.fence()
            executor.resume()
        for readers in self._readers:
            readers.clear()
        self._abort = False

    def abort(self) -> None:
        self._abort = True
        running = self._running
        if running is not None:
            running.abort()

    def copy_block(self, source: int, target: int) -> None:
        for executor in self._executors:
            executor.copy_block(source, target)

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """Each segment fills its layers."""
        for executor in self._executors:
            executor.read_block(block, into)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        for executor in self._executors:
            executor.write_block(block, data)

    def settle(self) -> None:
        for executor in self._executors:
            executor.settle()

    def close(self) -> None:
        """The CPU's memory, which the others have pinned, goes last."""
        for executor in sorted(self._executors, key=lambda e: e.in_host_memory):
            executor.close()
