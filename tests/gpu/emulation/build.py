"""The stand-ins for a GPU, built with g++ and kept: libcuda.so.1, libnvrtc.so.12, and the library that runs kernels on the CPU.

Three ways to use them:
- `standins().environment()`: variables under which any process finds both stand-ins;
- `standins().preload()`: this process's PyCUDA, imported afterwards, finds the stand-in driver already loaded;
- `Emulator`: kernels called on NumPy arrays without any driver (see kernels.py).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WEEK = 7 * 24 * 3600

# -ffp-contract=off: a product and a sum stay two roundings in every instantiation of a kernel, unless it says fmaf
KERNEL_FLAGS = (
    "-O2", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno", "-fsanitize=alignment,null",
    "-fno-sanitize-recover=all", "-fvisibility=hidden", "-march=native", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function",
    "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-Wno-attributes",
)  # fmt: skip
LIBRARY_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Wno-missing-field-initializers")


def compiler() -> str | None:
    """g++, or GGRUN_CXX; None when there is none."""
    return shutil.which(os.environ.get("GGRUN_CXX", "g++"))


@dataclass(frozen=True, slots=True)
class Standins:
    """Where the built libraries are."""

    folder: Path

    @property
    def cuda(self) -> Path:
        return self.folder / "libcuda.so.1"

    @property
    def nvrtc(self) -> Path:
        return self.folder / "libnvrtc.so.12"

    @property
    def runtime(self) -> Path:
        return self.folder / "libggrun_emulation.so"

    def environment(self, **settings: object) -> dict[str, str]:
        """This process's environment with both stand-ins in it. settings: of the driver, memory="8589934592,4294967296", capability=86,
        devices=2, driver=12020, eager=1, report=PATH (counters, written at exit) ...: GGRUN_STANDIN_<NAME>, see driver/state.h;
        order=0, 1 or a seed is the order of threads."""
        more = {f"GGRUN_STANDIN_{name.upper()}": str(value) for name, value in settings.items() if name != "order"}
        if "order" in settings:
            more["GGRUN_EMULATION_ORDER"] = str(settings["order"])
        libraries = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("LD_LIBRARY_PATH", ""))))
        return dict(os.environ) | {"LD_LIBRARY_PATH": libraries, "GGRUN_NVRTC": str(self.nvrtc)} | more

    def preload(self) -> Driver:
        """Load the stand-in driver into this process before PyCUDA is imported: the loader then finds its name already there."""
        driver = Driver(self)
        os.environ["GGRUN_NVRTC"] = str(self.nvrtc)
        return driver


class Driver:
    """The stand-in driver of this process: its settings and counters."""

    def __init__(self, standins: Standins) -> None:
        # not RTLD_GLOBAL: libstdc++ would come before what the real NVRTC brings along, and break it
        self._runtime = ctypes.CDLL(str(standins.runtime))
        self._library = ctypes.CDLL(str(standins.cuda))

    def reset(self, **settings: object) -> None:
        """Counters to zero, faults forgotten, settings as the environment has them but for those given; memory stays as it is."""
        self._library.standin_reset()
        self.order(0)
        self.set(**settings)

    def set(self, **settings: object) -> None:
        """See Standins.environment."""
        for name, value in settings.items():
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            assert not self._library.standin_set(name.encode(), text.encode()), f"the stand-in driver has no setting {name}"

    def order(self, order: int) -> None:
        """0: threads in order, 1: backwards, others: shuffled by this seed."""
        self._runtime.emulation_order(ctypes.c_uint(order))

    def ready(self, on: bool = True) -> None:
        """From now on every call that takes memory (device, pinned, module, graph, stream) fails and is counted as after_ready."""
        self._library.standin_ready(int(on))

    def counters(self) -> dict[str, Any]:
        """launches (kernels run), launch_calls, graph_launches, kernels {name: n}, bytes_h2d/d2h/d2d, copies_*, weight_bytes, allocations,
        after_ready, used and peak (bytes of each device), pinned, error ..."""
        buffer = ctypes.create_string_buffer(1 << 20)
        self._library.standin_report(buffer, ctypes.c_size_t(len(buffer)))
        return dict(json.loads(buffer.value))


@functools.cache
def standins() -> Standins:
    """Build what is not built. Raises RuntimeError with the compiler's words."""
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("needs g++ (on Debian: apt install g++)")
    sources = sorted(path for path in HERE.rglob("*") if path.suffix in (".h", ".cpp", ".c"))
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((cxx, version, KERNEL_FLAGS, LIBRARY_FLAGS, str(HERE), _processor())).encode())
    for path in sources:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    base = _base()
    folder = base / digest.hexdigest()[:20]
    if not (folder / "libnvrtc.so.12").exists():
        base.mkdir(parents=True, exist_ok=True)
        _remove_old(base)
        fresh = Path(tempfile.mkdtemp(dir=base))
        try:
            _build(cxx, fresh, folder)
            fresh.rename(folder)
        except OSError:  # another process was quicker
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    os.utime(folder)
    return Standins(folder)


def _base() -> Path:
    from ggrun.runtime.kept import cache_base

    return cache_base() / "emulation"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _build(cxx: str, folder: Path, final: Path) -> None:
    """Make the three libraries in `folder`, which will be renamed to `final`."""
    kept = folder / "kernels"
    kept.mkdir()
    shutil.copytree(HERE / "include", folder / "shim" / "include")
    for header in HERE.glob("*.h"):
        shutil.copy(header, folder / "shim")

    def run(*words: str | Path) -> None:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the stand-ins for a GPU do not build:\n{done.stdout}{done.stderr}")

    shared = (cxx, *LIBRARY_FLAGS, "-shared")
    run(*shared, "-Wl,-soname,libggrun_emulation.so", "-o", folder / "libggrun_emulation.so", HERE / "fibers.cpp")
    run(*shared, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", *sorted((HERE / "driver").glob("*.cpp")), "-x", "c",
        HERE / "driver" / "unsupported.c", "-L", folder, "-lggrun_emulation", "-Wl,-rpath,$ORIGIN", "-ldl")  # fmt: skip
    texts = {"CXX": cxx, "FLAGS": " ".join(KERNEL_FLAGS), "SHIM": final / "shim", "RUNTIME": final, "KEPT": final / "kernels"}
    defines = [f'-D{name}="{text}"' for name, text in texts.items()]
    run(*shared, *defines, "-Wl,-soname,libnvrtc.so.12", "-o", folder / "libnvrtc.so.12", HERE / "nvrtc.cpp")


def _remove_old(base: Path) -> None:
    """Remove what nobody has used for a week."""
    for folder in base.iterdir():
        if time.time() - folder.stat().st_mtime > WEEK:
            shutil.rmtree(folder, ignore_errors=True)
