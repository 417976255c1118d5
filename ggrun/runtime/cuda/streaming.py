"""Weights that come to a device anew for each long prompt: a thread reads them into pinned memory and copies them to one half of an arena
while the other half is multiplied with. What is in a half may be overwritten when the steps that use it have run.

Two streams of the device meet in events: the copies wait for the steps that used a half last, the steps for the copies. An event says
nothing before it was recorded, so each side also waits, on the host, until the other has queued what it is to wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import Segment
from ggrun.runtime.cuda import probe
from ggrun.runtime.cuda.bind import Tensor

Read = Callable[[str, int, memoryview], None]  # (tensor, first byte, memory to fill)
LOOK_SECONDS = 0.02  # between two looks at whether somebody aborted


class Streamer:
    """Brings a segment's streams in order, once for each `begin`. The device's context must be current in whoever calls.

    stream: of the steps. address: of the arena. pieces: pinned, both together. read: fills memory with a part of a tensor, in a thread of
    its own; None: from the file.
    """

    def __init__(
        self,
        driver: Any,
        context: probe.Context,
        stream: Any,
        address: int,
        segment: Segment,
        pieces: NDArray[np.uint8],
        tensors: Mapping[str, Tensor],
        read: Read | None = None,
    ) -> None:
        self._driver, self._context, self._steps = driver, context, stream
        self._copies: Any = driver.Stream(driver.event_flags.DEFAULT | 1)  # 1: not ordered with the default stream
        self._address, self._half_bytes, self._streams = address, segment.half_bytes, segment.streams
        self._pieces = np.split(pieces, 2)
        self._n_bytes = {name: tensors[name].n_bytes for stream in segment.streams for name in stream.weights}
        self._read: Read = read or (lambda name, start, target: tensors[name].read(start, target))
        driver.memset_d32_async(address, 0, segment.stream_bytes // 4, stream)  # what kernels multiply with when they are first run
        self._copied, self._arrived, self._used = ([driver.Event(driver.event_flags.DISABLE_TIMING) for _ in range(2)] for _ in range(3))
        self._change = threading.Condition()
        self._going = self._stop = self._closed = False
        self._n_queued = self._n_used = 0  # streams whose copies are queued; whose steps are
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="ggrun-streams", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Start bringing all of them; nothing may be using the arena."""
        self.stop()
        with self._change:
            self._n_queued = self._n_used = 0
            self._error, self._stop, self._going = None, False, True
            self._change.notify_all()

    def wait_for(self, index: int, aborted: Callable[[], bool]) -> bool:
        """Let the steps queued from now on wait for a stream; False when aborted meanwhile. Raises what reading it raised."""
        with self._change:
            while self._n_queued <= index and self._error is None and not aborted():
                self._change.wait(LOOK_SECONDS)
            if self._error is not None:
                raise self._error
            if self._n_queued <= index:
                return False
        self._steps.wait_for_event(self._arrived[self._streams[index].half])
        return True

    def used(self, index: int) -> None:
        """All steps that use a stream are queued."""
        self._used[self._streams[index].half].record(self._steps)
        with self._change:
            self._n_used = index + 1
            self._change.notify_all()

    def stop(self) -> None:
        """Bring no more, and wait until nothing is being copied."""
        with self._change:
            self._stop = True
            self._change.notify_all()
            while self._going:
                self._change.wait()

    def close(self) -> None:
        """End the thread."""
        self.stop()
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
        self._copies = None
        for events in (self._copied, self._arrived, self._used):
            events.clear()

    # ---- in the thread

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._going and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
            try:
                with self._context.use():
                    try:
                        self._bring()
                    finally:
                        self._copies.synchronize()
            except BaseException as error:  # told to whoever waits for what does not come
                self._error = error
            with self._change:
                self._going = False
                self._change.notify_all()

    def _bring(self) -> None:
        n_pieces = 0
        for index, stream in enumerate(self._streams):
            if index >= 2 and not self._free(index):
                return
            base = self._address + stream.half * self._half_bytes
            for name, offset in stream.weights.items():
                for start in range(0, self._n_bytes[name], len(self._pieces[0])):
                    if self._stop:
                        return
                    turn = n_pieces % 2
                    if n_pieces >= 2:
                        self._copied[turn].synchronize()  # the copy of two pieces ago
                    part = self._pieces[turn][: min(len(self._pieces[turn]), self._n_bytes[name] - start)]
                    self._read(name, start, part.data)
                    self._driver.memcpy_htod_async(base + offset + start, part, self._copies)
                    self._copied[turn].record(self._copies)
                    n_pieces += 1
            with self._change:
                self._arrived[stream.half].record(self._copies)
                self._n_queued = index + 1
                self._change.notify_all()

    def _free(self, index: int) -> bool:
        """Let the copies wait until a stream's half is no more used by the one before it; False when told to stop."""
        with self._change:
            while self._n_used < index - 1 and not self._stop:
                self._change.wait()
            if self._stop:
                return False
        self._copies.wait_for_event(self._used[self._streams[index].half])
        return True
