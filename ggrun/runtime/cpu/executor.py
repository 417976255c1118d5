"""Runs a segment of a plan on the CPU: memory reserved once, kernels bound once, then one call into compiled code per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import Segment, Shape
from ggrun.program.program import Program
from ggrun.runtime.cpu import compile, kv_blocks
from ggrun.runtime.cpu.bind import Binder, Tensor
from ggrun.runtime.cpu.cores import n_cores
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cpu.filling import Filling
from ggrun.runtime.cpu.layout import STEP_BYTES
from ggrun.runtime.cpu.memory import Memory
from ggrun.runtime.cpu.residency import Residency
from ggrun.runtime.cpu.team import Team
from ggrun.runtime.executor import Batch, Cancelled, Progress
from ggrun.runtime.hidden import head_step, residual
from ggrun.runtime.kv_form import KvForm

RULES = (  # what `checks` finds wrong with a batch
    "",
    "a token id is outside the vocabulary",
    "a sequence has no block table",
    "a position is outside its sequence's block table",
    "the positions of a sequence must rise",
    "a block id is outside the KV arena",
    "a sequence's tokens must follow one another",
    "a logit row is outside the batch",
)
FIRST_BYTES = 2 << 20  # a huge page: the first hundreds of tokens of a layer


class CpuExecutor:
    """Implements runtime.SegmentExecutor, and runtime.Executor for a segment that starts at the token ids and ends at the logits.

    n_threads: for batches of one token; n_threads_batch: for larger ones; neither beyond the cores there are. `tensors` must stay
    mapped until close(). `notes` are sentences for the user. load_weights is called when all memory is reserved, so that what does
    not fit is refused before a weight is read. Raises GgrunError when the memory cannot be had.
    """

    in_host_memory = True

    def __init__(
        self,
        program: Program,
        segment: Segment,
        shape: Shape,
        tensors: Mapping[str, Tensor],
        n_threads: int,
        n_threads_batch: int,
        device: CpuDevice,
        progress: Progress | None = None,
        load_weights: Callable[[], None] | None = None,
    ) -> None:
        self._program = program
        self._segment = segment
        self._shape = shape
        self._tensors = tensors
        self._form = KvForm(program.states, shape.type_k, shape.type_v)
        kernels, note = compile.load((step.kernel for step in segment.steps), device.tier, progress)
        self.notes: list[str] = [note] if note else []
        cores = n_cores()
        self._n_threads, self._n_threads_batch = min(n_threads, cores), min(n_threads_batch, cores)
        team_size = max(self._n_threads, self._n_threads_batch)
        self._output = next(b for b in program.buffers.values() if b.role == "output")
        self._thread_at = segment.scratch_bytes
        self._kv_at = self._thread_at + shape.n_threads * segment.thread_bytes
        assert team_size <= shape.n_threads
        self._memory: Memory | None = Memory(self._kv_at + segment.kv_bytes)
        self._filling = Filling(self._memory, self._wanted())
        base = self._memory.address
        self._residency = Residency(segment.copy, tensors, self.notes) if segment.copy else None
        if load_weights:
            load_weights()
        binder = Binder(program, segment, shape, tensors, kernels, base, base + self._kv_at)
        self._steps = np.frombuffer(binder.descriptors(), np.int64).copy()
        self._constants = binder.constants
        self._broken_rule = compile.function("broken_rule", 5)
        self._team = Team(team_size)
        self._range = (0, 0)  # of the steps that the team is told to do
        self._active = 1
        self._batch: tuple[NDArray[np.int32], ...] = ()  # keeps what the control block points to
        self._team.set(scratch=base + self._thread_at, scratch_stride=segment.thread_bytes)
        if self._residency:
            self._residency.start(self._steps, self._filling.settle)

    def _wanted(self) -> list[tuple[int, int]]:
        """All memory, (offset, n_bytes), in the order in which it is wanted: scratch, the beginnings of the layers' arenas, the rest."""
        first = min(FIRST_BYTES, self._segment.kv_bytes)
        beginnings = [(self._kv_at + min(place.offset, self._segment.kv_bytes - first), first) for place in self._segment.kv.values()]
        return [(0, self._kv_at), *beginnings, (self._kv_at, self._segment.kv_bytes)]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of scratch, thread scratch, KV and copied weights: what the ledger lists for them."""
        copied = self._residency.n_bytes if self._residency else 0
        return self._memory.n_bytes + copied if self._memory else 0

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits float32 [R, n_vocab], a view that the next run overwrites. Raises Cancelled after abort.

        An abort while nothing runs cancels the next run at once: the caller looks what it was meant for and runs again.
        """
        self.start(batch)
        self.run_stage(0, len(self._segment.lowered.steps))
        return self.read_buffer(self._output.name, len(batch.out_rows)).view(np.float32)

    def run_hidden(self, batch: Batch) -> NDArray[np.float32]:
        """What the head takes, [T, n_embd], a view that the next run overwrites."""
        self.start(batch)
        self.run_stage(0, head_step(self._segment.lowered.steps))
        return self.read_buffer(residual(self._program), len(batch.ids)).view(np.float32)

    def start(self, batch: Batch) -> None:
        """Check a batch and point the team at it; its arrays must not change until its last stage is done."""
        assert self._memory is not None, "start after close"
        ids, positions, seqs, tables, out_rows = (_int32(a) for a in (batch.ids, batch.positions, batch.seqs, batch.tables, batch.out_rows))
        n, shape = len(ids), self._shape
        assert 0 < n <= shape.n_ubatch, f"{n} tokens in a batch laid out for {shape.n_ubatch}"
        assert len(out_rows) <= shape.n_logits, f"{len(out_rows)} logit rows in a batch laid out for {shape.n_logits}"
        assert positions.shape == seqs.shape == (n,), "an id, a position and a sequence for each token"
        self._batch = ids, positions, seqs, tables, out_rows
        self._active = self._n_threads if n == 1 else self._n_threads_batch
        self._team.set(
            n_tokens=n,
            n_logits=len(out_rows),
            ids=ids.ctypes.data,
            positions=positions.ctypes.data,
            seqs=seqs.ctypes.data,
            tables=tables.ctypes.data,
            tables_stride=tables.strides[0],
            out_rows=out_rows.ctypes.data,
        )
        broken = self._broken_rule(self._team.control, self._program.n_vocab, *tables.shape, shape.n_kv_blocks)
        assert not broken, RULES[broken]

    def stream(self) -> None:
        """Its weights are in memory."""

    def read_weight(self, name: str, start: int, target: memoryview) -> None:
        """Fill `target` with a tensor's bytes from `start` on, from its copy in private memory or from the file."""
        if not (self._residency and self._residency.read(name, start, target)):
            self._tensors[name].read(start, target)

    def run_stage(self, first: int, last: int) -> None:
        """Do steps first..last-1 of the batch given to `start`. Raises Cancelled after abort."""
        assert self._batch, "run_stage before start"
        if self._range != (first, last):
            self._range = first, last
            base = self._steps.ctypes.data
            self._team.set(steps=base + first * STEP_BYTES, steps_end=base + last * STEP_BYTES)
        if not self._team.run(self._active):
            raise Cancelled

    def rows(self, name: str, n_rows: int, into: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
        """`read_buffer`, or a copy in `into`."""
        view = self.read_buffer(name, n_rows)
        if into is None:
            return view
        into[:] = view
        return into

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Copy into the first rows of a buffer."""
        self.read_buffer(name, len(array))[:] = array

    def fence(self) -> None:
        """Every call has done its work when it returns."""

    @property
    def scratch(self) -> tuple[int, int]:
        """Address and size of the memory in which buffers lie; for who wants to pin it."""
        assert self._memory is not None, "scratch after close"
        return self._memory.address, self._segment.scratch_bytes

    def read_buffer(self, name: str, n_rows: int) -> NDArray[np.float32] | NDArray[np.int32]:
        """A view of the first n_rows of a program buffer, [n_rows, width], as the last run left it.

        Buffers share memory, so only the output can be relied on unless the plan was laid out without reuse.
        """
        assert self._memory is not None, "read_buffer after close"
        buffer = self._program.buffers[name]
        raw = self._memory.view(self._segment.offsets[name], n_rows * buffer.row_bytes)
        if buffer.dtype == "i32":
            return raw.view(np.int32).reshape(n_rows, buffer.width)
        return raw.view(np.float32).reshape(n_rows, buffer.width)

    def run_highest(self, batch: Batch, k: int) -> NDArray[np.float32]:
        """All logits: they are in memory anyway."""
        return self.run(batch)

    def highest(self, n_rows: int, k: int) -> None:
        """All logits are in memory."""

    def abort(self) -> None:
        self._team.abort()

    def resume(self) -> None:
        self._team.set(abort=0)

    def copy_block(self, source: int, target: int) -> None:
        assert self._memory is not None, "copy_block after close"
        assert 0 <= source < self._shape.n_kv_blocks
        assert 0 <= target < self._shape.n_kv_blocks
        for place in self._segment.kv.values():
            n, at = place.block_bytes, self._kv_at + place.offset
            self._memory.view(at + target * n, n)[:] = self._memory.view(at + source * n, n)

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """This segment's layers of a block in the form of `runtime.kv_form`."""
        for name, layer in self._layers(block):
            kv_blocks.take(self._form, self._program.states[name], layer, self._form.layer(into, name))

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """The other way."""
        for name, layer in self._layers(block):
            kv_blocks.put(self._form, self._program.states[name], self._form.layer(data, name), layer)

    def _layers(self, block: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Each layer's name and its memory of a block."""
        assert self._memory is not None, "a block after close"
        assert 0 <= block < self._shape.n_kv_blocks
        for name, place in self._segment.kv.items():
            yield name, self._memory.view(self._kv_at + place.offset + block * place.block_bytes, place.block_bytes)

    def settle(self) -> None:
        """Wait until every page is there and the weights lie where they stay: what is measured after that is the steady speed."""
        self._filling.settle()
        if self._residency:
            self._residency.settle()

    def close(self) -> None:
        """Stop the threads and let go of the memory; a view handed out before keeps it alive."""
        self._team.close()
        self._filling.close()
        if self._residency:
            self._residency.close()
        self._memory = self._residency = None
        self._batch = ()


def _int32(array: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(array, np.int32)
