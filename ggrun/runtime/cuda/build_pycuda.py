"""Builds PyCUDA on a machine without a CUDA toolkit, and installs it into the Python that runs, with the compiler and its headers.

PyCUDA comes as source; its plain install wants cuda.h, cuRAND and libcuda. Here the headers come from the package index
(nvidia-cuda-runtime-cu12), cuRAND is left out, and a generated library stands for libcuda while linking. Built on 12.9 headers it asks a
driver for nothing that 12.0 has not. Needs g++, Python's headers, pip and a package index; takes about 90 seconds, once: the wheel is kept.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from ggrun.errors import GgrunError
from ggrun.runtime.kept import cache_base

VERSION = "2026.1"
HEADERS = ("nvidia-cuda-runtime-cu12==12.9.*", "nvidia-cuda-profiler-api-cu12==12.9.*")  # cuda.h; cudaProfiler.h
BESIDE = ("nvidia-cuda-nvrtc-cu12==12.9.*", "nvidia-cuda-runtime-cu12==12.9.*")  # what ggrun needs beside PyCUDA: the extra `cuda`
Say = Callable[[str], None]

_DECLARED = re.compile(r"CUDAAPI\s+(cu[A-Z]\w*)")
_RENAMED = re.compile(r"#define\s+cu[A-Z]\w*\s+(?:__CUDA_API_PT[A-Z]+\()?(cu[A-Z]\w*_v\d+)")


def install(say: Say) -> None:
    """Build PyCUDA, unless its wheel is kept, and install it with what ggrun needs beside it. Raises GgrunError with the reason.

    say: is told what goes on, a line a step."""
    wheel = kept_wheel()
    if wheel is None:
        wheel = build(say)
    say("installing PyCUDA, NVRTC and its headers")
    _run([*pip(), "install", "--quiet", str(wheel), *BESIDE], "could not be installed")
    say(f"PyCUDA {VERSION} is installed")


def kept_wheel() -> Path | None:
    """The wheel an earlier build made for this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted((cache_base() / "wheels").glob(f"pycuda-{VERSION}-{tag}-*.whl"))
    return found[-1] if found else None


def build(say: Say) -> Path:
    """Build the wheel and keep it. Raises GgrunError."""
    check()
    out = cache_base() / "wheels"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GgrunError(f"{out} cannot be made ({error.strerror}); GGRUN_CACHE_DIR sets another folder") from None
    with tempfile.TemporaryDirectory(prefix="ggrun-pycuda-") as name:
        folder = Path(name)
        say("fetching PyCUDA's source and CUDA's headers")
        headers, source = _headers(folder), _source(folder)
        libraries = _stand_in(folder, headers)
        settings = {"CUDA_INC_DIR": [str(headers)], "CUDADRV_LIB_DIR": [str(libraries)], "CUDA_ENABLE_CURAND": False}
        (source / "siteconf.py").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
        say("building PyCUDA (about 90 seconds)")
        # --no-as-needed: the linker must keep libcuda.so.1 among the needed libraries, though PyCUDA's names are found without it
        environment = dict(os.environ) | {"CFLAGS": "-g0 -O2", "LDFLAGS": "-Wl,--no-as-needed"}
        _run([*pip(), "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "made"), str(source)], "does not build", environment)
        (made,) = (folder / "made").glob("pycuda-*.whl")
        part = out / f".{made.name}.{os.getpid()}"
        shutil.copy(made, part)
        os.replace(part, out / made.name)
    return out / made.name


def check() -> None:
    """Raises GgrunError when what a build needs is missing, with the command that brings it."""
    if shutil.which("g++") is None:
        raise GgrunError("PyCUDA cannot be built: there is no g++; on Debian and Ubuntu: sudo apt install g++")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        raise GgrunError(f"PyCUDA cannot be built: Python's headers are missing; on Debian and Ubuntu: sudo apt install {python}-dev")
    pip()


def pip() -> list[str]:
    """The command that installs into the Python that runs; it need not have pip itself. Raises GgrunError."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found, "--python", sys.executable]
    raise GgrunError("there is no pip to install with; on Debian and Ubuntu: sudo apt install python3-pip")


def _headers(folder: Path) -> Path:
    target, headers = folder / "packages", folder / "include"
    _run([*pip(), "install", "--quiet", "--no-deps", "--target", str(target), *HEADERS], "needs CUDA's headers, which could not be fetched")
    for include in sorted(target.glob("nvidia/*/include")):
        shutil.copytree(include, headers, dirs_exist_ok=True)
    return headers


def _source(folder: Path) -> Path:
    fetch = [*pip(), "download", "--quiet", "--no-deps", "--no-binary", "pycuda", "--dest", str(folder / "source")]
    _run([*fetch, f"pycuda=={VERSION}"], "could not be fetched")
    (archive,) = (folder / "source").glob("pycuda-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "source", filter="data")
    (source,) = (path for path in (folder / "source").iterdir() if path.is_dir())
    return source


def _stand_in(folder: Path, headers: Path) -> Path:
    """A library with every name of the driver's, to link with; never run."""
    text = "".join((headers / name).read_text(errors="replace") for name in ("cuda.h", "cudaProfiler.h"))
    names = sorted({*_DECLARED.findall(text), *_RENAMED.findall(text)})
    libraries = folder / "lib"
    libraries.mkdir()
    (folder / "libcuda.c").write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    to, source = str(libraries / "libcuda.so"), str(folder / "libcuda.c")
    _run(["g++", "-x", "c", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", to, source], "cannot be linked")
    return libraries


def _run(command: Sequence[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return
    log = cache_base() / "build_pycuda.log"
    story = f"$ {' '.join(command)}\n{done.stdout}{done.stderr}"
    try:
        log.write_text(story)
        where = f"the whole story is in {log}"
    except OSError:
        where = story
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
    raise GgrunError(f"PyCUDA {what}: {(lines or ['no reason given'])[0].strip()} ({where})")


def main() -> int:
    """`python -m ggrun.runtime.cuda.build_pycuda`, for scripts: what is said goes to stderr."""
    try:
        install(lambda text: print(f"ggrun: {text}", file=sys.stderr, flush=True))
    except GgrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
