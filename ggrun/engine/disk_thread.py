"""The thread that reads blocks from the disk's cache and writes them there, so that the engine's thread waits for no disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.disk_blocks import DiskBlocks, Named

FETCHED_BYTES = 16 << 20  # read before the engine's thread is asked to take them
STORED_BLOCKS = 4  # that may wait for being written

Fill = Callable[[NDArray[np.uint8]], None]
Send = Callable[[Callable[[], None]], None]
Arrived = Callable[[Seq[NDArray[np.uint8]]], bool]


def staging_blocks(block_bytes: int) -> tuple[int, int]:
    """Blocks on their way from the disk, and to it."""
    return max(1, min(64, FETCHED_BYTES // block_bytes)), STORED_BLOCKS


def staging_bytes(block_bytes: int) -> int:
    """Host memory for both: a line of the ledger."""
    return sum(staging_blocks(block_bytes)) * block_bytes


@dataclass(frozen=True, slots=True)
class _Fetch:
    wanted: Seq[Named]
    stop: Callable[[], bool]
    send: Send
    arrived: Arrived
    done: Callable[[], None]


class DiskThread:
    """Starts at once. `has`, `fetch`, `store` and `used` are for the engine's thread."""

    def __init__(self, disk: DiskBlocks, block_bytes: int) -> None:
        self._disk = disk
        self.notes: list[str] = []
        n_in, n_out = staging_blocks(block_bytes)
        self._in = [np.empty(block_bytes, np.uint8) for _ in range(n_in)]
        self._out = deque(np.empty(block_bytes, np.uint8) for _ in range(n_out))
        self._changed = threading.Condition()
        self._fetches: deque[_Fetch] = deque()
        self._stores: deque[tuple[Named, NDArray[np.uint8]]] = deque()
        self._used: list[Seq[bytes]] = []
        self._writing = False
        self.full = False  # nothing more is written: an error said why
        self._closed = False
        self.on_ready: Callable[[], None] = lambda: None  # called when `ready` has become true again
        self.on_note: Callable[[str], None] = lambda text: None  # called with each note, by this thread
        self._thread = threading.Thread(target=self._run, name="ggrun-disk", daemon=True)
        self._thread.start()

    def has(self, key: bytes) -> bool:
        """Whether a block is there, as far as this process knows."""
        return key in self._disk.keys

    @property
    def ready(self) -> bool:
        """Whether another block may be stored now."""
        return bool(self._out) and not self.full

    def fetch(self, wanted: Seq[Named], stop: Callable[[], bool], send: Send, arrived: Arrived, done: Callable[[], None]) -> None:
        """Read blocks one behind the other; `send` the engine's thread to `arrived` with them, some at a time, and at last to `done`.

        Ends at the first that cannot be had, when `arrived` takes no more, or `stop` says so.
        """
        self._add(lambda: self._fetches.append(_Fetch(wanted, stop, send, arrived, done)))

    def store(self, named: Named, fill: Fill) -> None:
        """Write a block, whose bytes `fill` gives; only when `ready`."""
        data = self._out.popleft()
        fill(data)
        self._add(lambda: self._stores.append((named, data)))

    def used(self, keys: Seq[bytes]) -> None:
        """Blocks were found, in the order of a prompt."""
        self._add(lambda: self._used.append(keys))

    def flush(self) -> None:
        """Wait until everything stored is written; for tests and at the end of commands."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not (self._stores or self._writing or self._fetches))

    def close(self) -> None:
        """Write what was stored, say `done` for what was to be fetched, end."""
        self._add(lambda: setattr(self, "_closed", True))
        self._thread.join()

    def _add(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._fetches or self._stores or self._used)
                fetch = self._fetches.popleft() if self._fetches else None
                used, self._used = self._used, []
                store = self._stores.popleft() if self._stores and not fetch else None
                self._writing = store is not None
                if not (fetch or store or used):
                    return
            if fetch:
                try:
                    self._fetch(fetch)
                except Exception as error:  # whatever it is, the prompt can be computed
                    self._note(f"cached prompts in {self._disk.folder} cannot be read: {error}")
                fetch.send(fetch.done)
            for keys in used:
                self._disk.touch(keys)
            if store:
                self._store(*store)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.on_note(text)

    def _fetch(self, job: _Fetch) -> None:
        ready = 0  # blocks read and not yet handed over
        for named in job.wanted:
            if self._closed or job.stop() or not self._disk.read(named, self._in[ready]):
                break
            ready += 1
            if ready == len(self._in):
                if not self._hand_over(job, ready):
                    ready = 0
                    break
                ready = 0
        if ready:
            self._hand_over(job, ready)

    def _hand_over(self, job: _Fetch, n: int) -> bool:
        """Let the engine's thread take the first n blocks, and wait until it has: their memory is used again. False: no more."""
        taken = threading.Event()
        more = False

        def take() -> None:
            nonlocal more
            try:
                more = not self._closed and job.arrived(self._in[:n])
            except Exception as error:  # the executor's, which the next step will meet, too
                self._note(f"a cached prompt could not be taken from {self._disk.folder}: {error}")
            finally:
                taken.set()

        job.send(take)
        while not taken.wait(0.05):
            if self._closed:  # the engine's thread is waiting for this one
                return False
        return more

    def _store(self, named: Named, data: NDArray[np.uint8]) -> None:
        try:
            if not self.has(named.key):
                self._disk.write(named, data)
        except Exception as error:
            self.full = True
            said = error.strerror if isinstance(error, OSError) else error
            self._note(f"no more prompts are kept in {self._disk.folder}: {said}")
        self._add(lambda: setattr(self, "_writing", False))
        self._out.append(data)
        self.on_ready()
