"""Measures how fast a GPU runs ggrun's own kernels, in seconds, and what its driver keeps for itself: what plans predict from.

Kernels are timed by the device's own clock, many times in a row, so that neither Python nor the wait for a result counts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from ggrun.plan.device import Place
from ggrun.plan.machine import Speeds
from ggrun.plan.planner import Request
from ggrun.plan.segments import lay_out
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cuda import probe
from ggrun.runtime.cuda.device import CONTEXT_BYTES, OWN_BYTES, CudaDevice
from ggrun.runtime.cuda.driver import devices
from ggrun.runtime.cuda.executor import CudaExecutor
from ggrun.runtime.executor import Progress
from ggrun.runtime.yardstick import ADDS, KINDS, Sizes, batch_of, program_of, weights_of

REPEATS = 20
COPY_BYTES = 16 << 20


def measure(place: Place, progress: Progress | None = None, sizes: Sizes | None = None) -> Speeds:
    """A GPU's speeds. Raises GgrunError when its memory does not hold what is measured."""
    device = place.device
    assert isinstance(device, CudaDevice)
    sizes = sizes or Sizes()
    driver_bytes = _driver_bytes(device)
    weights = weights_of(sizes)
    program = program_of(sizes, weights)
    request = Request(n_ctx=sizes.depth, n_ubatch=sizes.tokens, reuse=False)
    where = dict.fromkeys(program.units, device.name)
    plan = lay_out(program, (Place(CpuDevice(), 1 << 50, 1 << 50), place), where, request, sizes.depth, ("weights", 0))
    steps = plan.segments[0].lowered.steps
    at = {name: index for index, step in enumerate(steps) for name in (*step.weights[:1], step.kernel)}
    adds = next(index for index, step in enumerate(steps) if step.kernel == "add")
    ranges = [(0, len(steps)), (adds, adds + ADDS)]
    executor = CudaExecutor(program, plan.segments[0], plan.shape, device, ranges)
    executor.load(weights, progress=progress)
    try:

        def of(name: str) -> float:
            return executor.seconds(at[name], at[name] + 1, REPEATS)

        executor.start(batch_of(sizes, sizes.tokens))
        executor.run_stage(*ranges[0])
        products = {kind: sizes.product_flops / of(f"{kind}.weight") for kind in KINDS}
        attention = sizes.attention_flops / of("attention")
        executor.start(batch_of(sizes, 1))
        executor.run_stage(*ranges[0])
        read = weights["head.weight"].n_bytes / of("head.weight")
        step = executor.seconds(*ranges[1], REPEATS) / ADDS
        executor.fence()
    finally:
        executor.close()
    copies = _copies(device)
    return Speeds(read, products, step, attention, *copies, driver_bytes, measured=datetime.now(UTC).isoformat(timespec="seconds"))


def _context(device: CudaDevice) -> probe.Context:
    return probe.Context(next(found for found in devices() if found.index == device.index))


def _driver_bytes(device: CudaDevice) -> int:
    """What a context takes: the difference that a second one makes; and the guess for the kernels' code."""
    driver: Any = probe.pycuda_driver()
    context = _context(device)
    try:
        before, _ = context.memory()
        second = driver.Device(device.index).make_context()
        try:
            after, _ = driver.mem_get_info()
        finally:
            second.pop()
            second.detach()
    except driver.Error:
        return 0
    finally:
        context.close()
    taken = before - after
    return int(taken) + OWN_BYTES - CONTEXT_BYTES if taken > 0 else 0


def _copies(device: CudaDevice) -> tuple[float, float, float]:
    """Bytes a second to the device and from it, through pinned memory, and seconds of a small copy there and back, halved."""
    context = _context(device)
    try:
        with context.use():
            return _timed_copies(probe.pycuda_driver())
    finally:
        context.close()


def _timed_copies(driver: Any) -> tuple[float, float, float]:
    """In the current context; what it makes is gone when it returns."""
    host = driver.pagelocked_empty(COPY_BYTES, "uint8")
    memory = driver.mem_alloc(COPY_BYTES)
    stream = driver.Stream()
    small = host[:256]

    def timed(copy: Callable[[], None]) -> float:
        times = []
        for _ in range(5):
            begin = perf_counter()
            copy()
            stream.synchronize()
            times.append(perf_counter() - begin)
        return min(times)

    def there_and_back() -> None:
        driver.memcpy_htod_async(memory, small, stream)
        driver.memcpy_dtoh_async(small, memory, stream)

    to = timed(lambda: driver.memcpy_htod_async(memory, host, stream))
    back = timed(lambda: driver.memcpy_dtoh_async(host, memory, stream))
    latency = timed(there_and_back) / 2
    memory.free()
    host.base.free()
    return COPY_BYTES / to, COPY_BYTES / back, latency
