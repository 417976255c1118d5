"""The real compiler accepts every kernel for every architecture, and keeps it in registers.

A spilled register is memory traffic that nobody planned; no kernel has one. The whole list of kernels takes minutes when sources have
changed and is slow; what everybody runs is always looked at.
"""

from pathlib import Path

import pytest

from ggrun.runtime.cuda import nvrtc, sources
from ggrun.runtime.cuda.nvrtc import Nvrtc
from tests.gpu.conftest import missing
from tests.gpu.emulation.samples import SAMPLES
from tests.gpu.reports import ARCHITECTURES, Report, parse, reports, wanted


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    found = nvrtc.packaged()
    if not found:
        missing(f"needs the real CUDA compiler: {nvrtc.INSTALL}")
    return Nvrtc(found[0])


def spilled(report: Report) -> str:
    """What is wrong with a report; "" if nothing is."""
    if not report.spills:
        return ""
    return f"sm_{report.cc} {report.kernel}: {report.spill_stores} + {report.spill_loads} bytes spilled, {report.registers} registers"


def check(found: list[Report], kernels: set[str]) -> None:
    assert {report.kernel for report in found} == kernels
    assert not [text for report in found if (text := spilled(report))]


@pytest.mark.parametrize("cc", [61, 90])
def test_usual_kernels(compiler: Nvrtc, cc: int) -> None:
    kernels = wanted(cc, ("Q4_K",), ((32, 8, 128),), ("f16",))
    check(reports(compiler, cc, kernels), kernels)


@pytest.mark.slow
@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_every_kernel(compiler: Nvrtc, cc: int) -> None:
    kernels = wanted(cc)
    check(reports(compiler, cc, kernels), kernels)


def test_no_kernel_is_left_out() -> None:
    named = {kernel.split("__")[0] for cc in ARCHITECTURES for kernel in wanted(cc)}
    assert named == set(sources.bases())


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_primitives_compile_for_every_architecture(compiler: Nvrtc, cc: int, tmp_path: Path) -> None:
    names = "fetch__0 half_warps loads mma_s8 mma_f16".split()
    unit = sources.unit("samples.cuh", names, sources.texts() | {"samples.cuh": SAMPLES})
    module = sources.compile_unit(unit, compiler.target(cc), compiler, tmp_path)
    assert module.image[:4] == b"\x7fELF"


def test_a_spill_is_seen() -> None:
    log = """ptxas info    : Compiling entry function 'gemv__Q4_K__1' for 'sm_90'
ptxas info    : Function properties for gemv__Q4_K__1
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 64 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
"""
    first, second = parse(log)
    assert first == Report("gemv__Q4_K__1", 90, 72, 8, 4, 12, 64)
    assert second == Report("other", 90, 16, 0, 0, 0, 0)
    assert "4 + 12 bytes spilled" in spilled(first)
    assert not spilled(second)
