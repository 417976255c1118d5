"""What the card itself reaches, by kernels that do nothing else: reading memory, multiplying on tensor cores and beside them, the link."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from ggrun.runtime.cuda import nvrtc, probe
from ggrun.runtime.cuda.driver import Device, devices

READ_BYTES = 1 << 30  # many times any cache
LINK_BYTES = 256 << 20
LOOPS, SMALL_LOOPS = 1 << 14, 1 << 4  # of multiplications in one thread
SAMPLES = 7
WIDTH = 256  # threads of a block

# in: n uint4. Each thread reads 16 bytes, WIDTH * blocks of them apart from the next, and writes only if they add up to what they never do
READ = """
extern "C" __global__ void read_all(const uint4 *in, unsigned *out, long long n) {
    unsigned total = 0;
    long long step = (long long)gridDim.x * blockDim.x;
    #pragma unroll 4
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint4 v = __ldg(in + i);
        total += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (total == 0x9e3779b9u) out[0] = total;
}
"""

# four independent accumulators a thread, so that one product's latency hides another's
FMA = """
extern "C" __global__ void multiply_add(unsigned *out, int loops) {
    float a = threadIdx.x, b = 1.0001f, c[8];
    for (int i = 0; i < 8; i++) c[i] = i;
    for (int n = 0; n < loops; n++)
        #pragma unroll
        for (int i = 0; i < 8; i++) c[i] = fmaf(c[i], b, a);
    float total = 0;
    for (int i = 0; i < 8; i++) total += c[i];
    if (total == 1.25f) out[0] = 1;
}
"""
MMA = """
extern "C" __global__ void {name}(unsigned *out, int loops) {{
    unsigned a[4], b[2];
    {kind} c[4][4];
    for (int i = 0; i < 4; i++) {{ a[i] = threadIdx.x * 7 + i; for (int j = 0; j < 4; j++) c[i][j] = 0; }}
    b[0] = threadIdx.x; b[1] = threadIdx.x + 1;
    for (int n = 0; n < loops; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++)
            asm volatile("{instruction} {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};"
                : "+{letter}"(c[i][0]), "+{letter}"(c[i][1]), "+{letter}"(c[i][2]), "+{letter}"(c[i][3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    {kind} total = 0;
    for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) total += c[i][j];
    if (total == ({kind})12345) out[0] = 1;
}}
"""
INT8 = MMA.format(name="int8", kind="int", letter="r", instruction="mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
HALF = MMA.format(name="half", kind="float", letter="f", instruction="mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """read, to_device, from_device: bytes a second. int8, half: operations a second by mma (0 below 8.0); single: by FMA."""

    name: str
    read: float
    int8: float
    half: float
    single: float
    to_device: float
    from_device: float


def measure(index: int = 0, small: bool = False) -> Ceilings:
    """The best of several runs of each. small: sizes for what is no GPU."""
    found = devices()[index]
    context = probe.Context(found)
    try:
        with context.use():
            return _measure(probe.pycuda_driver(), found, small)
    finally:
        context.close()


def _measure(driver: Any, device: Device, small: bool) -> Ceilings:
    stream = driver.Stream()
    loops, n_read, n_link = (SMALL_LOOPS, 1 << 16, 1 << 16) if small else (LOOPS, READ_BYTES, LINK_BYTES)
    blocks = 8 if small else device.n_sm * 8

    def seconds(what: Callable[[], None]) -> float:
        times = []
        for _ in range(SAMPLES):
            begin, end = driver.Event(), driver.Event()
            begin.record(stream)
            what()
            end.record(stream)
            end.synchronize()
            times.append(float(begin.time_till(end)) / 1e3)
        return min(times)

    with _memory(driver, n_read, n_link) as (area, out, host):
        read = _function(driver, device, READ, "read_all")
        run = _launcher(stream)
        rate = n_read / seconds(lambda: run(read, blocks, "PPq", int(area), int(out), n_read // 16))

        def operations(text: str, name: str, of_a_warp: int) -> float:
            function = _function(driver, device, text, name)
            warps = blocks * WIDTH // 32
            return warps * of_a_warp * loops / seconds(lambda: run(function, blocks, "Pi", int(out), loops))

        modern = device.cc >= 80 and not small
        int8 = operations(INT8, "int8", 4 * 2 * 16 * 8 * 32) if modern else 0.0
        half = operations(HALF, "half", 4 * 2 * 16 * 8 * 16) if modern else 0.0
        single = operations(FMA, "multiply_add", 32 * 8 * 2)
        to = len(host) / median(seconds(lambda: driver.memcpy_htod_async(area, host, stream)) for _ in range(3))
        back = len(host) / median(seconds(lambda: driver.memcpy_dtoh_async(host, area, stream)) for _ in range(3))
    return Ceilings(device.name, rate, int8, half, single, to, back)


def _launcher(stream: Any) -> Callable[..., None]:
    from ggrun.runtime.cuda.launch import pack

    def run(function: Any, blocks: int, types: str, *values: int) -> None:
        function._launch_kernel((blocks, 1, 1), (WIDTH, 1, 1), pack(types, *values), 0, stream)

    return run


def _function(driver: Any, device: Device, text: str, name: str) -> Any:
    compiler = nvrtc.find()
    image = compiler.compile(text, f"{name}.cu", compiler.target(device.cc)).image
    _loaded.append(driver.module_from_buffer(image))
    return _loaded[-1].get_function(name)


_loaded: list[Any] = []  # modules live as long as their functions are used


@contextmanager
def _memory(driver: Any, n_read: int, n_link: int) -> Iterator[tuple[Any, Any, Any]]:
    host = driver.pagelocked_empty(n_link, "uint8")
    area, out = driver.mem_alloc(max(n_read, n_link)), driver.mem_alloc(256)
    try:
        driver.memset_d32(area, 1, max(n_read, n_link) // 4)
        ctypes.memset(int(host.ctypes.data), 1, n_link)
        yield area, out, host
    finally:
        area.free()
        out.free()
        host.base.free()
        _loaded.clear()
