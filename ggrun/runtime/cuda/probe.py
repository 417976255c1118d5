"""What this machine has for CUDA: driver, devices, PyCUDA, compiler; and for what is missing, a sentence and the one command that mends it.

`probe` never raises and imports no PyCUDA. `pycuda_driver` is the one place where PyCUDA is imported; `Context` makes a device's context
current and gives it back before Python ends, because PyCUDA aborts the process otherwise.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ggrun.errors import GgrunError
from ggrun.runtime.cuda import driver, nvrtc
from ggrun.runtime.cuda.driver import Device, DriverError

OLDEST_CC = 61  # dp4a, which all quantized kernels are made of
LEAST_BYTES = 512 << 20  # less holds no layer worth the trip
BUILD_PYCUDA = "ggrun doctor --build-pycuda"


class CudaMissing(GgrunError):
    """CUDA cannot be used on this machine: why, and what mends it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing CUDA needs. text: what is there, or what is wrong; command: the one that mends it, "" when there is none or no need."""

    name: str
    ok: bool
    text: str
    command: str = ""

    @property
    def sentence(self) -> str:
        return f"{self.text}; this mends it: {self.command}" if self.command else self.text


@dataclass(frozen=True, slots=True)
class Probe:
    """Everything found. devices: usable ones; unusable: the others, with why."""

    driver: Part
    gpus: Part
    pycuda: Part
    compiler: Part
    devices: tuple[Device, ...]
    unusable: tuple[tuple[Device, str], ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order in which they are needed."""
        return self.driver, self.gpus, self.pycuda, self.compiler

    @property
    def problem(self) -> str:
        """Why CUDA cannot be used, as a sentence; "" when it can."""
        return next((part.sentence for part in self.parts if not part.ok), "")

    @property
    def no_gpu(self) -> bool:
        """There is nothing to mend: the machine has no NVIDIA GPU."""
        return not self.driver.ok and not self.driver.command


@functools.cache
def probe() -> Probe:
    """Look once; the process keeps what was found."""
    found, part = _find_driver()
    good, bad, gpus = _find_devices() if found else ((), (), Part("devices", False, "without a driver no device can be found"))
    return Probe(part, gpus, _find_pycuda(), _find_compiler(good), good, bad)


def usable_devices() -> tuple[Device, ...]:
    """The devices ggrun can run on. Raises CudaMissing when something is missing."""
    found = probe()
    if found.problem:
        raise CudaMissing(f"CUDA cannot be used: {found.problem}")
    return found.devices


def _find_driver() -> tuple[bool, Part]:
    try:
        driver.library()
    except OSError:
        return False, _no_driver()
    try:
        version = driver.version()
    except DriverError as error:
        return False, Part("driver", False, f"the NVIDIA driver does not answer: {error}", "sudo reboot")
    text = f"CUDA {version[0]}.{version[1]}" + (f", release {release}" if (release := _release()) else "")
    if version < driver.OLDEST:
        oldest = ".".join(map(str, driver.OLDEST))
        why = f"the NVIDIA driver is too old ({text}); ggrun needs CUDA {oldest}, release {driver.OLDEST_NAME}, or newer"
        return False, Part("driver", False, why, _install_driver())
    return True, Part("driver", True, text)


def _release() -> str:
    """The kernel module's version, 550.54.14."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


def _no_driver() -> Part:
    """libcuda.so.1 is not there: because there is no GPU, because this is a container, or because nobody installed it."""
    if not _nvidia_hardware():
        return Part("driver", False, "there is no NVIDIA driver (libcuda.so.1), and no NVIDIA GPU was found in this machine")
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return Part("driver", False, "this container does not see the NVIDIA driver (libcuda.so.1)", "docker run --gpus all ...")
    return Part("driver", False, "the NVIDIA driver (libcuda.so.1) is not installed", _install_driver())


def _nvidia_hardware() -> bool:
    if Path("/proc/driver/nvidia").exists() or Path("/dev/dxg").exists():  # the latter: Windows' GPU seen from WSL
        return True
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


INSTALL_DRIVER = {  # by ID and ID_LIKE of /etc/os-release
    "ubuntu": "sudo ubuntu-drivers install",
    "debian": "sudo apt install nvidia-driver",
    "fedora": "sudo dnf install akmod-nvidia",
    "rhel": "sudo dnf install nvidia-driver",
    "arch": "sudo pacman -S nvidia",
    "suse": "sudo zypper install nvidia-video-G06",
}
ANY_DRIVER = "install the driver from https://www.nvidia.com/drivers"


def _install_driver() -> str:
    if Path("/dev/dxg").exists():
        return "install NVIDIA's Windows driver from https://www.nvidia.com/drivers, then: wsl --shutdown"
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ANY_DRIVER
    named = dict(line.split("=", 1) for line in lines if "=" in line)
    words = " ".join(named.get(key, "").strip('"') for key in ("ID", "ID_LIKE")).split()
    return next((INSTALL_DRIVER[word] for word in words if word in INSTALL_DRIVER), ANY_DRIVER)


# what cuInit may answer besides success: CUresult -> (what it means, the command)
INIT_ERRORS = {
    100: ("the driver finds no GPU", "nvidia-smi"),
    46: ("another process holds the GPU for itself", "sudo nvidia-smi -c DEFAULT"),
    802: ("the GPUs are not ready: their fabric manager does not run", "sudo systemctl start nvidia-fabricmanager"),
    803: ("the driver was updated and its parts do not fit together until the machine starts again", "sudo reboot"),
    804: ("the driver's compatibility library does not work on this GPU", "unset LD_LIBRARY_PATH"),
    999: ("the driver's kernel module does not answer", "sudo modprobe nvidia_uvm"),
}


def _find_devices() -> tuple[tuple[Device, ...], tuple[tuple[Device, str], ...], Part]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs"
    try:
        found = driver.devices()
    except DriverError as error:
        if error.code == 100 and visible is not None:
            return (), (), Part("devices", False, hidden, "unset CUDA_VISIBLE_DEVICES")
        why, command = INIT_ERRORS.get(error.code, (f"the NVIDIA driver fails ({error})", "nvidia-smi"))
        return (), (), Part("devices", False, why, command)
    reasons = [(device, _unusable(device)) for device in found]
    good = tuple(device for device, why in reasons if not why)
    bad = tuple((device, why) for device, why in reasons if why)
    if good:
        return good, bad, Part("devices", True, ", ".join(f"{device.label} {device.name}" for device in good))
    if bad:
        return good, bad, Part("devices", False, "; ".join(f"{device.label} ({device.name}) {why}" for device, why in bad))
    if visible is not None:
        return good, bad, Part("devices", False, hidden, "unset CUDA_VISIBLE_DEVICES")
    return good, bad, Part("devices", False, *INIT_ERRORS[100])


def _unusable(device: Device) -> str:
    if device.cc < OLDEST_CC:
        return f"has compute capability {device.capability}, and ggrun's kernels need {OLDEST_CC // 10}.{OLDEST_CC % 10} or newer"
    if device.total_bytes < LEAST_BYTES:
        return f"has {device.total_bytes >> 20} MiB of memory, too little for any model ({LEAST_BYTES >> 20} MiB at least)"
    return ""


def _find_pycuda() -> Part:
    try:
        version = package_version("pycuda")
    except PackageNotFoundError:
        return Part("PyCUDA", False, "PyCUDA is not installed", BUILD_PYCUDA)
    spec = find_spec("pycuda")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    if not any(next(Path(folder).glob("_driver*"), None) for folder in folders):
        return Part("PyCUDA", False, f"PyCUDA {version} has no compiled part for this Python", BUILD_PYCUDA)
    return Part("PyCUDA", True, version)


def _find_compiler(devices: Sequence[Device]) -> Part:
    try:
        compiler = nvrtc.find()
        for device in devices:
            compiler.target(device.cc)
    except nvrtc.NvrtcMissing as error:
        return Part("compiler", False, error.text, error.command)
    if not nvrtc.include_folders():
        return Part("compiler", False, "the CUDA compiler has no headers (cuda_fp16.h)", nvrtc.INSTALL)
    return Part("compiler", True, compiler.name)


@functools.cache
def pycuda_driver() -> Any:
    """The module pycuda.driver, initialized. Raises CudaMissing. Import PyCUDA nowhere else."""
    try:
        import pycuda.driver as found
    except ImportError as error:
        raise CudaMissing(f"PyCUDA does not load ({error}); this builds it anew: {BUILD_PYCUDA}") from None
    try:
        found.init()
    except found.Error as error:  # not the builtin RuntimeError
        raise CudaMissing(f"CUDA cannot be used: {probe().gpus.sentence} ({error})") from None
    return found


class Context:
    """A device's primary context. `use` makes it current in the calling thread; `close` gives it back, at the latest when Python ends."""

    def __init__(self, device: Device) -> None:
        """Raises CudaMissing when the driver has no memory for it."""
        self.device = device
        self._driver = pycuda_driver()
        try:
            self._context = self._driver.Device(device.index).retain_primary_context()
        except self._driver.Error as error:
            raise CudaMissing(
                f"{device.label} ({device.name}) cannot be used: {error}; nvidia-smi shows which programs hold its memory"
            ) from None
        self._lock = threading.Lock()
        self._open = True
        atexit.register(self.close)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Current while inside; may be nested, and used by several threads."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes now, the driver's own share of this context already taken."""
        with self.use():
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Give the context back; twice is harmless."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        atexit.unregister(self.close)
        self._context.detach()
