"""The stand-in driver through the real PyCUDA: lazy streams, events, graphs, honest memory, and what it catches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggrun.runtime.cuda import probe
from ggrun.runtime.cuda.driver import DriverError
from ggrun.runtime.cuda.graph import Recorder
from ggrun.runtime.cuda.launch import pack
from tests.gpu.emulation.build import Driver
from tests.gpu.samples_loaded import function

N = 256


class Step:
    """y = 2 x through pinned memory and one kernel, on a stream of its own."""

    def __init__(self, folder: Path) -> None:
        self.cuda = probe.pycuda_driver()
        self.kernel = function("scale", folder)
        self.stream = self.cuda.Stream(1)
        self.x, self.y = (self.cuda.pagelocked_zeros(N, np.float32) for _ in range(2))
        self.device_x, self.device_y = (self.cuda.mem_alloc(4 * N) for _ in range(2))

    def __call__(self) -> None:
        self.cuda.memcpy_htod_async(self.device_x, self.x, self.stream)
        self.launch()
        self.cuda.memcpy_dtoh_async(self.y, self.device_y, self.stream)

    def launch(self, wrong: int = 0) -> None:
        arguments = pack("PPifq", int(self.device_x), int(self.device_y), N, 2.0, wrong)
        self.kernel._launch_kernel((2, 1, 1), (128, 1, 1), arguments, 0, self.stream)


@pytest.fixture
def step(driver: Driver, tmp_path: Path) -> Iterator[Step]:
    driver.set(memory=1 << 30, capability=86)
    context = probe.Context(probe.driver.devices()[0])
    with context.use():
        made = Step(tmp_path)
        yield made
        driver.reset()
        del made
    context.close()


def test_nothing_happens_before_somebody_waits(step: Step, driver: Driver) -> None:
    step.x[:] = np.arange(N)
    step()
    assert not step.y.any()
    assert driver.counters()["launches"] == 0
    step.stream.synchronize()
    assert np.array_equal(step.y, 2 * np.arange(N))
    counted = driver.counters()
    assert counted["kernels"] == {"scale": 1}
    assert (counted["bytes_h2d"], counted["bytes_d2h"], counted["used"][0]) == (4 * N, 4 * N, 8 * N)


def test_events_between_streams(step: Step) -> None:
    cuda = step.cuda
    other, done = cuda.Stream(1), cuda.Event()
    step.x[:] = 3
    copy = cuda.pagelocked_zeros(N, np.float32)
    step()
    done.record(step.stream)
    other.wait_for_event(done)
    cuda.memcpy_dtoh_async(copy, step.device_y, other)
    other.synchronize()
    assert np.array_equal(copy, np.full(N, 6))


def test_a_missing_event_shows_as_stale_data(step: Step) -> None:
    cuda = step.cuda
    other = cuda.Stream(1)
    step.x[:] = 3
    copy = cuda.pagelocked_zeros(N, np.float32)
    step()
    cuda.memcpy_dtoh_async(copy, step.device_y, other)
    other.synchronize()
    assert set(copy.view(np.uint8)) == {0xCB}


def test_graphs_replay_with_new_inputs(step: Step, driver: Driver) -> None:
    recorder = Recorder.find()
    assert recorder
    graph = recorder.record(step.stream.handle, step)
    assert driver.counters()["launches"] == 0
    for value in (1, 5):
        step.x[:] = value
        graph.launch(step.stream.handle)
        step.stream.synchronize()
        assert np.array_equal(step.y, np.full(N, 2 * value))
    counted = driver.counters()
    assert (counted["graph_launches"], counted["launches"], counted["launch_calls"]) == (2, 2, 0)
    graph.close()
    graph.close()


@pytest.mark.parametrize("broken", ["raises", "synchronizes"])
def test_a_step_that_cannot_be_recorded(step: Step, broken: str) -> None:
    def bad() -> None:
        step()
        if broken == "raises":
            raise ValueError(broken)
        step.stream.synchronize()

    recorder = Recorder.find()
    assert recorder
    with pytest.raises((ValueError, step.cuda.Error)):
        recorder.record(step.stream.handle, bad)
    step.x[:] = 4
    step()
    step.stream.synchronize()
    assert step.y[0] == 8


def test_a_driver_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.driver, "library", lambda: object())
    assert Recorder.find() is None


def test_a_fault_names_the_kernel_and_stays(step: Step) -> None:
    step.launch(wrong=5000)
    with pytest.raises(step.cuda.Error, match="scale: access outside memory"):
        step.stream.synchronize()
    with pytest.raises(step.cuda.Error):
        step.cuda.mem_alloc(16)


def test_memory_is_honest(step: Step) -> None:
    free, total = step.cuda.mem_get_info()
    assert total == 1 << 30
    held = step.cuda.mem_alloc(free)
    assert step.cuda.mem_get_info()[0] == 0
    with pytest.raises(step.cuda.MemoryError, match="out of memory"):
        step.cuda.mem_alloc(1)
    held.free()
    assert step.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize(
    "take", [lambda cuda: cuda.mem_alloc(16), lambda cuda: cuda.pagelocked_empty(4, np.int8), lambda cuda: cuda.Stream(1)]
)
def test_nothing_is_taken_after_ready(step: Step, driver: Driver, take: Callable[[Any], object]) -> None:
    driver.ready()
    with pytest.raises(step.cuda.Error):
        take(step.cuda)
    assert driver.counters()["after_ready"] > 0
    step()
    step.stream.synchronize()


def test_copies_stay_inside_an_allocation(step: Step) -> None:
    with pytest.raises(step.cuda.Error, match="invalid argument"):
        step.cuda.memcpy_htod(int(step.device_x), np.zeros(N + 1, np.float32))


def test_a_driver_call_that_fails_says_which(driver: Driver) -> None:
    probe.driver.devices()
    with pytest.raises(DriverError, match="cuDeviceGet: invalid device ordinal"):
        probe.driver.call("cuDeviceGet", probe.driver.ctypes.byref(probe.driver.ctypes.c_int()), 99)
    with pytest.raises(DriverError, match="has no cuNothing"):
        probe.driver.call("cuNothing")
