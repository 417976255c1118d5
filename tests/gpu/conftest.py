"""What GPU tests may use. Without a GPU they run on the stand-in driver and compiler (tests/gpu/emulation), which g++ builds once; with
GGRUN_TEST_GPU=1 those that can run on the real one.

The stand-in driver must be in the process before PyCUDA is imported, so it is loaded here, when the first test of this folder is collected.
"""

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from ggrun.engine import gpus
from ggrun.runtime.cuda import nvrtc, probe
from tests.gpu.emulation import build

REAL = os.environ.get("GGRUN_TEST_GPU", "") not in ("", "0")
CI = os.environ.get("CI", "").lower() in ("1", "true")


def missing(what: str) -> None:
    """Skip the calling test, or fail it when CI=true."""
    if CI:
        pytest.fail(what)
    pytest.skip(what)


@functools.cache
def loaded_driver() -> build.Driver | None:
    """The stand-in driver in this process; None with a real GPU, or without g++."""
    if REAL or build.compiler() is None:
        return None
    found = build.Driver(build.standins())
    found.set(devices=0)  # other tests of this process are about the CPU
    return found


loaded_driver()


def forget() -> None:
    """What was found out about drivers, compilers and GPUs no longer holds."""
    for kept in (nvrtc.find, probe.probe, gpus.found):
        kept.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    """Every test of this folder needs g++, also where there is a GPU."""
    if build.compiler() is None:
        missing("the stand-in GPU needs g++ (on Debian: apt install g++)")


@pytest.fixture
def pycuda() -> None:
    """For tests whose processes import PyCUDA."""
    if find_spec("pycuda") is None:
        missing("needs PyCUDA: python -m ggrun doctor --build-pycuda")


@pytest.fixture
def standins() -> build.Standins:
    """The stand-in driver and compiler, for processes of their own: `standins.environment(memory=..., capability=75)`."""
    return build.standins()


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> None:
    """A GPU, real or not: for what does not look into the driver. CUDA0 exists."""
    if not REAL:
        request.getfixturevalue("driver")
    elif probe.probe().problem:
        missing(probe.probe().problem)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, pycuda: None) -> Iterator[build.Driver]:
    """The stand-in driver of this process with counters at zero, PyCUDA ready to be imported, the stand-in compiler chosen."""
    found = loaded_driver()
    if found is None:
        pytest.skip("looks into the stand-in driver, and GGRUN_TEST_GPU asks for the real one")
    monkeypatch.setenv("GGRUN_NVRTC", str(build.standins().nvrtc))
    forget()
    found.reset()
    yield found
    found.reset()
    found.set(devices=0)
    forget()
