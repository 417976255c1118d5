"""A stream and what goes to it: launches one by one, in portions, so that whoever aborts is heard in time.

Launching is far quicker than computing: without portions a prompt's thousand launches would all be queued before anyone could say stop.
Needs the device's context to be current. Knows no plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ggrun.runtime.cuda.launch import Launch

PORTION = 24  # launches between two looks at the flag: about two layers
AHEAD = 2  # portions that may be queued or running while the next is being queued

Prepared = tuple[Callable[..., None], tuple[int, int, int], tuple[int, int, int], bytes, int]
"""The launching method of a kernel's function, and what it takes beside the stream."""


class Queue:
    """Runs prepared launches in order. `aborted` says whether to stop."""

    def __init__(self, driver: Any, functions: Mapping[str, Any], aborted: Callable[[], bool]) -> None:
        self.stream: Any = driver.Stream(driver.event_flags.DEFAULT | 1)  # 1: not ordered with the default stream
        self._functions = functions
        self._shared_attribute = driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._shared: dict[str, int] = {}
        self._aborted = aborted
        self._events = [driver.Event(driver.event_flags.DISABLE_TIMING) for _ in range(AHEAD)]

    def prepare(self, launches: Iterable[Launch]) -> list[Prepared]:
        """Look up the kernels, and allow them the dynamic shared memory they ask for."""
        return [(self._function(launch)._launch_kernel, launch.grid, launch.block, launch.args, launch.shared_bytes) for launch in launches]

    def _function(self, launch: Launch) -> Any:
        function = self._functions[launch.kernel]
        if launch.shared_bytes > self._shared.get(launch.kernel, 48 << 10):  # more than every device allows unasked
            function.set_attribute(self._shared_attribute, launch.shared_bytes)
            self._shared[launch.kernel] = launch.shared_bytes
        return function

    def enqueue(self, prepared: Sequence[Prepared]) -> None:
        """Queue them all; for a capture."""
        stream = self.stream
        for launch, grid, block, args, shared in prepared:
            launch(grid, block, args, shared, stream)

    def run(self, prepared: Sequence[Prepared]) -> bool:
        """Queue them portion by portion; False when aborted meanwhile, with nothing left running."""
        for index, at in enumerate(range(0, len(prepared), PORTION)):
            event = self._events[index % AHEAD]
            if index >= AHEAD:
                event.synchronize()
            if self._aborted():
                self.stream.synchronize()
                return False
            self.enqueue(prepared[at : at + PORTION])
            event.record(self.stream)
        return True

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        self.stream.synchronize()

    def close(self) -> None:
        """The stream is destroyed with its last reference."""
        self.stream.synchronize()
        self._events.clear()
        self.stream = None
        self._functions = {}
