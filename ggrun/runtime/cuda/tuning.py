"""Measures how fast a GPU runs ggrun's own kernels, in a second or two, and what its driver keeps for itself: what plans predict from.

Kernels and large copies are timed by the device's own clock, several samples of several runs each, and the middle sample counts: neither
Python nor the wait for a result is in them. Two figures are what a program waits for, by the wall: the start of a graph, and a crossing.

A device on which a small batch takes longer than any GPU needs (the stand-in driver computes on the processor) is measured on small sizes,
so that this ends; the figures are kept under its name like any card's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Any

from ggrun.errors import GgrunError
from ggrun.plan.device import Place
from ggrun.plan.ledger import human
from ggrun.plan.machine import Speeds
from ggrun.plan.planner import Request
from ggrun.plan.segments import lay_out
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cuda import probe
from ggrun.runtime.cuda.device import CONTEXT_BYTES, CudaDevice
from ggrun.runtime.cuda.driver import devices
from ggrun.runtime.cuda.executor import CudaExecutor
from ggrun.runtime.executor import Progress
from ggrun.runtime.yardstick import ADDS, KINDS, Sizes, Weight, batch_of, program_of, weights_of

FULL = Sizes(rows=4096, tokens=512)
SMALL = Sizes(width=256, rows=64, vocabulary=64, tokens=32, depth=64, n_head=4, n_head_kv=2)
SLOW_SECONDS = 2.0  # a small product's rate says 0.2 s of a slow GPU, and minutes of a processor
SAMPLES, REPEATS, SAMPLE_SECONDS = 7, 20, 0.01  # of a figure; most runs in one sample; how long one should take
WARM_SECONDS = 0.2  # of computing before anything counts: an idle card's clocks are low
PINNED_BYTES = 16 << 20
SPARE_BYTES = 16 << 20  # of code: a model's kernels are not all the yardstick's


def measure(place: Place, progress: Progress | None = None, sizes: Sizes | None = None) -> Speeds:
    """A GPU's speeds. Raises GgrunError when its memory does not hold what is measured."""
    device = place.device
    assert isinstance(device, CudaDevice)
    return _measured(place, device, sizes or _sizes(place, device, progress), progress)


def _sizes(place: Place, device: CudaDevice, progress: Progress | None) -> Sizes:
    """The full sizes, or small ones for what is no GPU: where one full product would take seconds."""
    with _Yardstick(place, device, SMALL, progress) as small:
        small.prompt()
        rate = SMALL.product_flops / small.seconds("q8_k.weight")
    return FULL if FULL.product_flops / rate < SLOW_SECONDS else SMALL


def _measured(place: Place, device: CudaDevice, sizes: Sizes, progress: Progress | None) -> Speeds:
    context_bytes = _context_bytes(device) or CONTEXT_BYTES
    with _Yardstick(place, device, sizes, progress) as yardstick:
        yardstick.warm()
        products = {kind: sizes.product_flops / yardstick.seconds(f"{kind}.weight") for kind in KINDS}
        attention = sizes.attention_flops / yardstick.seconds("attention")
        yardstick.token()
        head = yardstick.weights["head.weight"].n_bytes
        read = head / yardstick.seconds("head.weight")
        step, start = yardstick.step_and_start()
        code_bytes = yardstick.code_bytes + SPARE_BYTES
    to, back, latency, within = _copies(device, head)
    return Speeds(
        read=read,
        flops=products,
        step=step,
        attention=attention,
        to_device=to,
        from_device=back,
        latency=latency,
        driver_bytes=context_bytes + code_bytes,
        code_bytes=code_bytes,
        within=within,
        start=start,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Yardstick:
    """The yardstick's program on a GPU. code_bytes: what the driver has taken meanwhile, besides a context and what was asked for."""

    def __init__(self, place: Place, device: CudaDevice, sizes: Sizes, progress: Progress | None) -> None:
        self.sizes = sizes
        self.weights: dict[str, Weight] = weights_of(sizes)
        program = program_of(sizes, self.weights)
        request = Request(n_ctx=sizes.depth, n_ubatch=sizes.tokens, reuse=False)
        where = dict.fromkeys(program.units, device.name)
        plan = lay_out(program, (Place(CpuDevice(), 1 << 50, 1 << 50), place), where, request, sizes.depth, ("weights", 0))
        steps = plan.segments[0].lowered.steps
        self._at = {name: index for index, step in enumerate(steps) for name in (*step.weights[:1], step.kernel)}
        adds = next(index for index, step in enumerate(steps) if step.kernel == "add")
        self._all, self._adds = (0, len(steps)), (adds, adds + ADDS)
        self._context = _context(device)
        try:
            before, _ = self._context.memory()
            self._executor = CudaExecutor(program, plan.segments[0], plan.shape, device, [self._all, self._adds])
            self._executor.load(self.weights, progress=progress)
            self.code_bytes = max(0, before - self._context.memory()[0] - self._executor.allocated_bytes)
        except BaseException:
            self._context.close()
            raise

    def __enter__(self) -> _Yardstick:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()
        self._context.close()

    def prompt(self) -> None:
        """A prompt, computed to its end."""
        self._run(self.sizes.tokens)

    def token(self) -> None:
        """A token behind a full context."""
        self._run(1)

    def _run(self, n_tokens: int) -> None:
        self._executor.start(batch_of(self.sizes, n_tokens))
        self._executor.run_stage(*self._all)
        self._executor.fence()

    def warm(self) -> None:
        """Prompts until the clocks are up; the last batch is one."""
        begin = perf_counter()
        self.prompt()
        while perf_counter() - begin < WARM_SECONDS:
            self.prompt()

    def seconds(self, name: str) -> float:
        """Of the step with that kernel or weight, for the batch that ran last."""
        return self._seconds(self._at[name], self._at[name] + 1)

    def _seconds(self, first: int, last: int) -> float:
        once = self._executor.seconds(first, last, 1)
        repeats = max(1, min(REPEATS, int(SAMPLE_SECONDS / max(once, 1e-9))))
        return median(self._executor.seconds(first, last, repeats) for _ in range(SAMPLES))

    def step_and_start(self) -> tuple[float, float]:
        """Seconds that one more small step adds to a graph, and seconds from asking for a graph to its end, its steps not counted."""
        steps = self._seconds(*self._adds)

        def whole() -> None:
            self._executor.run_stage(*self._adds)
            self._executor.fence()

        return steps / ADDS, max(0.0, _wall(whole) - steps)


def _wall(what: Callable[[], None]) -> float:
    """Seconds that something takes who waits for it."""

    def once() -> float:
        begin = perf_counter()
        what()
        return perf_counter() - begin

    return median(once() for _ in range(SAMPLES))


def _context(device: CudaDevice) -> probe.Context:
    return probe.Context(next(found for found in devices() if found.index == device.index))


def _context_bytes(device: CudaDevice) -> int:
    """What a context takes, seen from another one; 0 where the driver does not let two be."""
    driver: Any = probe.pycuda_driver()
    try:
        observer = driver.Device(device.index).make_context()
    except driver.Error:
        return 0
    try:
        before, _ = driver.mem_get_info()
        context = _context(device)
    except (driver.Error, probe.CudaMissing):
        return 0
    else:
        after, _ = context.memory()
        context.close()
        return max(0, int(before) - after)
    finally:
        observer.pop()
        observer.detach()


def _copies(device: CudaDevice, n_bytes: int) -> tuple[float, float, float, float]:
    """Bytes a second to the device and from it, through pinned memory; seconds of a small copy there and back, halved; bytes a second
    copied within its memory, n_bytes at a time."""
    context = _context(device)
    try:
        with context.use():
            return _timed_copies(probe.pycuda_driver(), device, n_bytes)
    finally:
        context.close()


def _timed_copies(driver: Any, device: CudaDevice, n_bytes: int) -> tuple[float, float, float, float]:
    """In the current context; what it makes is gone when it returns."""
    stream, begin, end = driver.Stream(), driver.Event(), driver.Event()

    def timed(copy: Callable[[], None]) -> float:
        begin.record(stream)
        copy()
        end.record(stream)
        end.synchronize()
        return float(begin.time_till(end)) / 1e3

    def middle(copy: Callable[[], None]) -> float:
        return median(timed(copy) for _ in range(SAMPLES))

    with _memory(driver, device, n_bytes) as (host, one, other):
        small = host[:256]

        def there_and_back() -> None:
            driver.memcpy_htod_async(one, small, stream)
            driver.memcpy_dtoh_async(small, one, stream)
            stream.synchronize()

        to = len(host) / middle(lambda: driver.memcpy_htod_async(one, host, stream))
        back = len(host) / middle(lambda: driver.memcpy_dtoh_async(host, one, stream))
        within = n_bytes / middle(lambda: driver.memcpy_dtod_async(other, one, n_bytes, stream))
        return to, back, _wall(there_and_back) / 2, within


@contextmanager
def _memory(driver: Any, device: CudaDevice, n_bytes: int) -> Iterator[tuple[Any, Any, Any]]:
    """Pinned memory, and twice n_bytes on the device."""
    held: list[Any] = []
    try:
        try:
            host = driver.pagelocked_empty(min(PINNED_BYTES, n_bytes), "uint8")
            held.append(host.base)
            for _ in range(2):
                held.append(driver.mem_alloc(n_bytes))
        except driver.Error as error:
            raise GgrunError(
                f"{device.name}: measuring needs {human(2 * n_bytes)} of its memory, and the driver refuses it ({error})"
            ) from None
        yield host, held[1], held[2]
    finally:
        for memory in held:
            memory.free()
