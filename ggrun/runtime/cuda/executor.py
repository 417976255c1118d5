"""Runs a segment of a plan on a GPU: one arena, kernels compiled and bound before the first token, decode steps replayed as graphs.

A batch of up to 8 tokens is padded to a graph's rows; its positions, lengths and tables lie in the batch block on the device. Larger
batches are launched kernel by kernel, from lists that are kept for the sizes seen last. Nothing is allocated once it is made.
Any thread may use it, one at a time: every call makes the device's context current.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.device import Segment, Shape, Stage
from ggrun.program.program import Buffer, Program
from ggrun.runtime.cuda import attention, bind, graph, inputs, modules, probe, reduce
from ggrun.runtime.cuda.bind import Binder, Tensor
from ggrun.runtime.cuda.device import HIGHEST, HIGHEST_ROWS, CudaDevice, pinned
from ggrun.runtime.cuda.driver import DriverError, devices
from ggrun.runtime.cuda.inputs import Counts
from ggrun.runtime.cuda.launch import Launch
from ggrun.runtime.cuda.memory import Arena, Pinned, register
from ggrun.runtime.cuda.queue import Prepared, Queue
from ggrun.runtime.cuda.streaming import Read, Streamer
from ggrun.runtime.cuda.upload import upload
from ggrun.runtime.executor import Batch, Cancelled, Highest, Progress
from ggrun.runtime.hidden import head_step, residual
from ggrun.runtime.kv_form import KvForm

KEPT_LISTS = 32  # launch lists of batch sizes seen last

Range = tuple[int, int]  # steps first..last-1


class CudaExecutor:
    """Implements runtime.SegmentExecutor, and runtime.Executor for a segment that is the whole program. Call `load` before anything else.

    Making it takes the memory, so that what does not fit is refused before a weight is read: GgrunError. ranges: the stages it will be
    asked to run; prompt: those for batches of more than 8 tokens with streamed weights, which `stream` begins to bring.
    """

    in_host_memory = False

    def __init__(
        self,
        program: Program,
        segment: Segment,
        shape: Shape,
        device: CudaDevice,
        ranges: Sequence[Range] | None = None,
        prompt: Sequence[Stage] = (),
    ) -> None:
        self.notes: list[str] = []
        self._form = KvForm(program.states, shape.type_k, shape.type_v)
        self._program, self._segment, self._shape, self._device = program, segment, shape, device
        self._ranges = list(ranges) if ranges is not None else [(0, len(segment.lowered.steps))]
        self._streamed = {(stage.first, stage.last): stage.stream for stage in prompt}
        self._streamer: Streamer | None = None
        self._pieces_bytes = 2 * device.piece_bytes if segment.streams else 0  # at the end of the pinned block
        self._output = next(b for b in program.buffers.values() if b.role == "output")
        self._abort = False
        self._closed = False
        self._buckets = inputs.buckets(shape)
        self._lists: OrderedDict[tuple[Range, Counts], list[Prepared]] = OrderedDict()
        self._graphs: dict[tuple[Range, int], graph.Graph] = {}
        self._counts = Counts(0, 0)
        self._n_tokens = 0
        self._held: list[NDArray[np.generic]] = []  # arrays that queued copies read
        self._closing: list[Callable[[], None]] = []  # what frees what was made, in the order of making
        self._driver: Any = probe.pycuda_driver()
        self._context = probe.Context(next(found for found in devices() if found.index == device.index))
        with self._making():
            self._arena = Arena(self._driver, segment.arena_bytes, device.name)
            self._closing.append(self._arena.free)
            self._pinned = Pinned(self._driver, sum(segment.host.values()), device.name)
            self._closing.append(self._pinned.free)

    def load(
        self,
        tensors: Mapping[str, Tensor],
        kept: frozenset[str] = frozenset(),
        progress: Progress | None = None,
        graphs: bool = True,
        read: Read | None = None,
    ) -> None:
        """Compile and load every kernel that may be needed, upload the weights, run everything once and capture graphs of it.

        kept: tensors whose file pages the CPU goes on using. read: fills memory with streamed weights. GgrunError when a kernel cannot be
        compiled or the file not be read.
        """
        with self._making():
            self._binder = Binder(self._program, self._segment, self._shape, tensors, self._device.arch, self._arena.address)
            classes = bind.classes(self._shape)
            names = {launch.kernel for counts in classes for launch in self._every(counts)}
            names.update(reduce.KERNELS if HIGHEST in self._segment.offsets else ())
            functions = modules.load(self._driver, sorted(names), self._device.arch, progress)
            self._queue = Queue(self._driver, functions, lambda: self._abort)
            self._closing.append(self._queue.close)
            self._upload(tensors, kept, progress)
            self._divide()
            if self._segment.streams:
                pieces = self._pinned.part(self._pinned.n_bytes - self._pieces_bytes, self._pieces_bytes)
                stream, arena = self._queue.stream, self._binder.streams
                self._streamer = Streamer(self._driver, self._context, stream, arena, self._segment, pieces, tensors, read)
                self._closing.append(self._streamer.close)
            for counts in classes:
                self._warm_up(counts)
            if graphs:
                self._capture()

    @contextmanager
    def _making(self) -> Iterator[None]:
        """The context is current; when something fails, everything is given back."""
        try:
            with self._context.use():
                try:
                    yield
                except BaseException:
                    self._free()
                    raise
        except BaseException:
            self._context.close()
            raise

    def _upload(self, tensors: Mapping[str, Tensor], kept: frozenset[str], progress: Progress | None) -> None:
        total = sum(tensors[name].n_bytes for name in self._segment.weights)
        done = 0

        def report(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            if progress:
                progress("load", done, total)

        half = self._pinned.n_bytes // 2
        halves = self._pinned.part(0, half), self._pinned.part(half, half)
        upload(self._driver, self._queue.stream, halves, self._segment.weights, tensors, self._arena.address, kept, report)
        constants = list(self._binder.constants())
        for address, values in constants:  # on the stream: a plain copy may return before kernels there would see it
            self._driver.memcpy_htod_async(address, values, self._queue.stream)
        self._queue.wait()

    def _divide(self) -> None:
        """From now on the pinned block holds the batch, the logits and what crosses a cut."""
        logits = self._output.row_bytes if self._output.name in self._segment.offsets else 0
        parts = pinned(self._shape, logits, 0)
        self._batch = self._pinned.part(0, parts.logits).view(np.int32)
        self._logits = self._pinned.part(parts.logits, self._shape.n_logits * logits)
        self._crossing = self._pinned.part(parts.crossing, self._pinned.n_bytes - parts.crossing - self._pieces_bytes)

    def _every(self, counts: Counts) -> Iterator[Launch]:
        """The launches of all stages that a batch of these counts may run."""
        long = self._streamed if counts.n_tokens > max(self._buckets.values()) else ()
        for steps in (*self._ranges, *long):
            yield from self._binder.launches(steps[0], steps[1], counts)

    def _warm_up(self, counts: Counts) -> None:
        """Run everything once on the null block: what the driver puts off until a kernel first runs has happened then."""
        none = np.zeros(0, np.int32)
        padding = Batch(none, none, none, none.reshape(0, 0), none)
        n_bytes = inputs.pack(padding, counts, [(0, 1)] * counts.n_tiles, self._shape, self._batch)
        self._driver.memcpy_htod_async(self._binder.batch, self._batch[: n_bytes // 4], self._queue.stream)
        self._queue.enqueue(self._queue.prepare(self._every(counts)))
        if counts.n_rows and HIGHEST in self._segment.offsets:
            self._queue.enqueue(self._highest(1, 1))
        self._queue.wait()

    def _capture(self) -> None:
        """A graph for each stage and bucket, replayed once."""
        recorder = graph.Recorder.find()
        problem = "" if recorder else "the driver has no graphs"
        for rows, steps in ((rows, steps) for rows in dict.fromkeys(self._buckets.values()) for steps in self._ranges):
            if recorder is None or problem:
                break
            prepared = self._prepared(steps, self._bucket_counts(rows))
            try:
                made = recorder.record(self._queue.stream.handle, partial(self._queue.enqueue, prepared))
            except DriverError as error:
                problem = str(error)
                break
            self._graphs[steps, rows] = made
            self._closing.append(made.close)
            made.launch(self._queue.stream.handle)
        if problem:
            self.notes.append(f"{self._device.name}: kernels are launched one by one, which is slower: {problem}")
        self._queue.wait()

    def _bucket_counts(self, rows: int) -> Counts:
        return Counts(rows, min(rows, self._shape.n_logits))

    def _highest(self, n_rows: int, k: int) -> list[Prepared]:
        return self._queue.prepare(self._binder.highest(self._output, n_rows, k))

    def _prepared(self, steps: Range, counts: Counts) -> list[Prepared]:
        """The launches of a stage, made when its counts are first seen."""
        key = steps, counts
        found = self._lists.get(key)
        if found is None:
            found = self._lists[key] = self._queue.prepare(self._binder.launches(*steps, counts))
            if len(self._lists) > KEPT_LISTS * (len(self._ranges) + len(self._streamed)):
                self._lists.popitem(last=False)
        else:
            self._lists.move_to_end(key)
        return found

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the arena: what the ledger lists for weights, KV, scratch and streamed weights on this device."""
        return 0 if self._closed else self._arena.n_bytes

    @property
    def pinned_bytes(self) -> int:
        """Bytes of host memory: what the ledger lists as staging for this device."""
        return 0 if self._closed else self._pinned.n_bytes

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits float32 [R, n_vocab], a view that the next run overwrites. Raises Cancelled after abort.

        An abort while nothing runs cancels the next run at once: the caller looks what it was meant for and runs again.
        """
        self.start(batch)
        for first, last in self._ranges:
            self.run_stage(first, last)
        return self.rows(self._output.name, len(batch.out_rows)).view(np.float32)

    def run_highest(self, batch: Batch, k: int) -> NDArray[np.float32] | Highest:
        """Like `run`; when the k highest logits of each row can be found here and are all finite, only they are fetched."""
        self.start(batch)
        for first, last in self._ranges:
            self.run_stage(first, last)
        found = self.highest(len(batch.out_rows), k)
        return self.rows(self._output.name, len(batch.out_rows)).view(np.float32) if found is None else found

    def run_hidden(self, batch: Batch) -> NDArray[np.float32]:
        """What the head takes, [T, n_embd], an array of the caller's. Launched kernel by kernel: no graph ends there."""
        self.start(batch)
        head = head_step(self._segment.steps)
        for first, last in self._ranges:
            if first < head:
                self.run_stage(first, min(last, head))
        buffer = self._program.buffers[residual(self._program)]
        rows = np.empty((len(batch.ids), buffer.width), np.float32)
        return self.rows(buffer.name, len(rows), rows).view(np.float32)

    def highest(self, n_rows: int, k: int) -> Highest | None:
        """The k highest logits of each of n_rows rows that the last stage left; None when they have to be looked for among all logits."""
        n_bytes = reduce.out_bytes(n_rows, k)
        fits = n_rows <= HIGHEST_ROWS and 0 < k <= reduce.most(self._output.width) and n_bytes <= self._logits.nbytes
        if HIGHEST not in self._segment.offsets or not n_rows or not fits:
            return None
        with self._context.use():
            into = self._logits[:n_bytes]
            self._queue.enqueue(self._highest(n_rows, k))
            self._driver.memcpy_dtoh_async(into, self._binder.area(HIGHEST), self._queue.stream)
            self._wait()
        return reduce.found(into, n_rows, k)

    def start(self, batch: Batch) -> None:
        """Check a batch and send its numbers to the device."""
        with self._context.use():
            self._start(batch)

    def stream(self) -> None:
        """Begin to bring the streamed weights."""
        if self._streamer:
            self._streamer.begin()

    def run_stage(self, first: int, last: int) -> None:
        """Queue steps first..last-1. Raises Cancelled after abort."""
        with self._context.use():
            self._run_stage((first, last))

    def rows(self, name: str, n_rows: int, into: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
        """The first n_rows of a buffer, once they are there, in `into` or in pinned memory that the next call overwrites."""
        with self._context.use():
            return self._rows(self._program.buffers[name], n_rows, into)

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Queue a copy of an array to the first rows of a buffer; rows that only pad the batch become zero."""
        buffer = self._program.buffers[name]
        padded = self._counts.n_tokens if buffer.rows == "T" else self._counts.n_rows
        address = self._binder.area(name)
        with self._context.use():
            self._driver.memcpy_htod_async(address, array, self._queue.stream)
            self._held.append(array)
            if (missing := padded - len(array)) > 0:
                at = address + len(array) * buffer.row_bytes
                self._driver.memset_d32_async(at, 0, missing * buffer.width, self._queue.stream)

    def fence(self) -> None:
        """Wait until the device has done all that was asked of it."""
        with self._context.use():
            self._wait()

    def abort(self) -> None:
        """Stop the running batch within about two layers, or the next one at once; any thread."""
        self._abort = True

    def resume(self) -> None:
        """Forget an abort that nothing has noticed yet."""
        self._abort = False
        if self._streamer:
            self._streamer.stop()

    def pin(self, address: int, n_bytes: int) -> None:
        """Let the device copy from and to memory of the host by itself, until this is closed; without it copies are only slower."""
        with self._context.use():
            try:
                self._closing.append(register(address, n_bytes))
            except GgrunError as error:
                self.notes.append(f"{self._device.name}: what crosses between CPU and GPU is copied twice: {error}")

    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block of every layer."""
        assert 0 <= source < self._shape.n_kv_blocks
        assert 0 <= target < self._shape.n_kv_blocks
        with self._context.use():
            for state in self._segment.kv:
                place = self._binder.kv_place(state)
                n, at = place.block_bytes, place.offset
                self._driver.memcpy_dtod_async(at + target * n, at + source * n, n, self._queue.stream)

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """This segment's layers of a block: as they lie, see `runtime.kv_form`."""
        with self._context.use():
            for address, part in self._layers(block, into):
                self._driver.memcpy_dtoh_async(part, address, self._queue.stream)
            self._wait()

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """The other way."""
        with self._context.use():
            for address, part in self._layers(block, data):
                self._driver.memcpy_htod_async(address, part, self._queue.stream)
            self._wait()

    def _layers(self, block: int, data: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each layer's address of a block, and its part of the data."""
        assert 0 <= block < self._shape.n_kv_blocks
        for name in self._segment.kv:
            place = self._binder.kv_place(name)
            part = self._form.layer(data, name)
            assert part.nbytes == place.block_bytes, "the GPU's layout is the neutral one"
            yield place.offset + block * place.block_bytes, part

    def seconds(self, first: int, last: int, repeats: int) -> float:
        """Time that steps take on the device for the batch given to `start`, by its own clock, on average; a graph where there is one."""
        with self._context.use():
            begin, end = self._driver.Event(), self._driver.Event()
            captured = self._graphs.get(((first, last), self._counts.n_tokens))
            prepared = self._prepared((first, last), self._counts)
            stream = self._queue.stream
            begin.record(stream)
            for _ in range(repeats):
                if captured:
                    captured.launch(stream.handle)
                else:
                    self._queue.enqueue(prepared)
            end.record(stream)
            end.synchronize()
            return float(begin.time_till(end)) / 1e3 / repeats

    def settle(self) -> None:
        """Weights are where they stay from the start."""
        self.fence()

    def close(self) -> None:
        """Free everything; may be called twice."""
        if not self._closed:
            with self._context.use():
                self._free()
            self._context.close()

    # ---- with the context current

    def _start(self, batch: Batch) -> None:
        assert not self._closed, "run after close"
        inputs.check(batch, self._shape, self._program.n_vocab)
        self._n_tokens = len(batch.ids)
        rows = self._buckets.get(self._n_tokens, 0)
        tiles: list[tuple[int, int]] = []
        if rows:
            self._counts = self._bucket_counts(rows)
        else:
            tiles = inputs.query_tiles(batch, attention.QUERY_TILE)
            if len(tiles) == self._n_tokens:
                tiles = []  # single tokens attend on their own
            self._counts = Counts(self._n_tokens, len(batch.out_rows), len(tiles))
        n_bytes = inputs.pack(batch, self._counts, tiles, self._shape, self._batch)
        self._driver.memcpy_htod_async(self._binder.batch, self._batch[: n_bytes // 4], self._queue.stream)

    def _run_stage(self, steps: Range) -> None:
        stream = self._streamed.get(steps, -1)
        if self._streamer and stream >= 0 and not self._streamer.wait_for(stream, lambda: self._abort):
            self._stopped()
        captured = self._graphs.get((steps, self._counts.n_tokens)) if self._n_tokens in self._buckets else None
        if captured is None:
            done = self._queue.run(self._prepared(steps, self._counts))
        elif done := not self._abort:
            captured.launch(self._queue.stream.handle)
        if not done:
            self._stopped()
        if self._streamer and stream >= 0:
            self._streamer.used(stream)

    def _stopped(self) -> None:
        self.resume()
        self._wait()
        raise Cancelled

    def _wait(self) -> None:
        self._queue.wait()
        self._held.clear()

    def _rows(self, buffer: Buffer, n_rows: int, into: NDArray[np.generic] | None) -> NDArray[np.generic]:
        n_bytes = n_rows * buffer.row_bytes
        if into is None:
            part = self._logits if buffer is self._output else self._crossing
            into = part[:n_bytes].view(np.int32 if buffer.dtype == "i32" else np.float32).reshape(n_rows, buffer.width)
        if n_bytes:
            self._driver.memcpy_dtoh_async(into, self._binder.area(buffer.name), self._queue.stream)
        self._wait()
        return into

    def _free(self) -> None:
        self._closed = True
        self._lists.clear()
        self._graphs.clear()
        for close in reversed(self._closing):
            close()
        self._closing.clear()
