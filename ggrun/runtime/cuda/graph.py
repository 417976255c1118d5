"""CUDA graphs: launches and copies of one step, recorded once from a stream and replayed by one call. PyCUDA has none: ctypes.

    recorder = Recorder.find()                    # None with a driver that has no graphs: launch plainly
    graph = recorder.record(stream.handle, step)  # step() launches on that stream; it does not run now
    graph.launch(stream.handle); ...; graph.close()

What a step reads that changes between replays (positions, lengths) must lie in device memory, or in pinned memory that a copy names.
Memory that a step names must outlive the graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from ggrun.runtime.cuda import driver
from ggrun.runtime.cuda.driver import DriverError

_NEEDED = (
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
)
_THREAD_LOCAL = 1  # CUstreamCaptureMode: other threads may go on calling the driver


class Graph:
    """One recorded step. The context it was recorded in must be current for every call."""

    __slots__ = ("_executable", "_launch")

    def __init__(self, executable: ctypes.c_void_p) -> None:
        self._executable: ctypes.c_void_p | None = executable
        self._launch = driver.library().cuGraphLaunch

    def launch(self, stream: int) -> None:
        """Run it once on a stream (its handle). Raises DriverError."""
        code = self._launch(self._executable, ctypes.c_void_p(stream))
        if code:
            driver.check("cuGraphLaunch", code)

    def close(self) -> None:
        """Free it; twice is harmless."""
        if self._executable is not None:
            driver.call("cuGraphExecDestroy", self._executable)
            self._executable = None


class Recorder:
    """Records graphs; `find` gives one only where the driver can."""

    @staticmethod
    def find() -> Recorder | None:
        """None when the driver lacks a call that graphs need (all since CUDA 11.4 have them)."""
        return Recorder() if all(hasattr(driver.library(), name) for name in _NEEDED) else None

    def record(self, stream: int, step: Callable[[], None]) -> Graph:
        """Record what step() does on this stream (a handle; never the default stream). Raises DriverError when something in it cannot be
        recorded: the step then has not run, the stream is as before, and launching plainly still works."""
        handle, recorded, executable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuStreamBeginCapture_v2", handle, _THREAD_LOCAL)
        try:
            step()
        except BaseException:
            self._stop(handle, recorded)
            raise
        driver.call("cuStreamEndCapture", handle, ctypes.byref(recorded))
        try:
            driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), recorded, ctypes.c_ulonglong(0))
        finally:
            driver.call("cuGraphDestroy", recorded)
        return Graph(executable)

    @staticmethod
    def _stop(handle: ctypes.c_void_p, recorded: ctypes.c_void_p) -> None:
        try:
            driver.call("cuStreamEndCapture", handle, ctypes.byref(recorded))
            driver.call("cuGraphDestroy", recorded)
        except DriverError:
            return  # the capture was invalid already, which ended it
