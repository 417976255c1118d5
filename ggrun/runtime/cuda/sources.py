"""Which .cuh file defines which kernel, the text to compile for a set of kernels, and where machine code is kept between runs.

A kernel's name is `base` or `base__ARG__ARG`; its file says
`#define KERNEL_base(A, B) extern "C" __global__ void base__##A##__##B(...) ...`.
One translation unit a file: the file itself, then one line for each kernel asked for. Machine code is kept beside the CPU's kernels
(`cuda` in the cache folder) under a hash of everything it is made of; a folder that cannot be written only costs compiling again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ggrun.errors import GgrunError
from ggrun.runtime.cuda.nvrtc import Nvrtc, include_folders

FOLDERS = (Path(__file__).parent / "kernels", Path(__file__).parents[3] / "quant" / "cuda")
OPTIONS = ("--std=c++17", "-default-device", "--extra-device-vectorization")
KEEP = 400  # files of machine code: a model needs a dozen or two

_KERNEL = re.compile(r"^[ \t]*#[ \t]*define[ \t]+KERNEL_(\w+)\(", re.MULTILINE)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


class UnknownKernel(GgrunError):
    """No .cuh file defines the kernel: a mistake in ggrun."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One translation unit: a file with the kernels wanted of it, and the headers it includes, directly or not."""

    file: str
    kernels: tuple[str, ...]
    text: str
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """For messages; must not be its file's, which it includes."""
        return self.file.replace(".cuh", ".cu")


@dataclass(frozen=True, slots=True)
class Module:
    """Machine code of a unit, what the compiler said (for code just compiled; "" from the cache), and whether it was just compiled."""

    kernels: tuple[str, ...]
    image: bytes
    log: str
    compiled: bool


def files() -> dict[str, Path]:
    """Every .cuh file by its include name, which is its base name."""
    found = [path for folder in FOLDERS for path in sorted(folder.glob("*.cuh"))]
    assert len({path.name for path in found}) == len(found), "two .cuh files of one name"
    return {path.name: path for path in found}


@functools.cache
def texts() -> dict[str, str]:
    """Every .cuh file's text by its include name."""
    return {name: path.read_text() for name, path in files().items()}


@functools.cache
def bases() -> dict[str, str]:
    """Kernel bases to the file that defines them."""
    return {base: name for name, text in texts().items() for base in bases_of(text)}


def bases_of(text: str) -> list[str]:
    """The kernel bases that a .cuh file's text defines."""
    return _KERNEL.findall(text)


def units(kernels: Iterable[str]) -> list[Unit]:
    """The translation units that hold these kernels, each kernel once. Raises UnknownKernel."""
    wanted: dict[str, list[str]] = {}
    for kernel in sorted(set(kernels)):
        base = kernel.split("__")[0]
        if base not in bases():
            raise UnknownKernel(f"there is no CUDA kernel {kernel}: no file has #define KERNEL_{base}(")
        wanted.setdefault(bases()[base], []).append(kernel)
    return [unit(file, names, texts()) for file, names in sorted(wanted.items())]


def unit(file: str, kernels: Iterable[str], sources: dict[str, str]) -> Unit:
    """One translation unit of a file, with its own sources (tests have kernels that ggrun has not)."""
    lines = [f'#include "{file}"']
    for kernel in kernels:
        base, *arguments = kernel.split("__")
        lines.append(f"KERNEL_{base}({', '.join(arguments)})")
    return Unit(file, tuple(kernels), "\n".join(lines) + "\n", _included(file, sources))


def _included(file: str, sources: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    left = [file]
    while left:
        name = left.pop()
        if name in found or name not in sources:
            continue
        found[name] = sources[name]
        left += _INCLUDE.findall(sources[name])
    return dict(sorted(found.items()))


def compile_kernels(
    kernels: Iterable[str],
    cc: int,
    compiler: Nvrtc,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Module]:
    """Machine code for these kernels on a device of compute capability cc (86 for 8.6), from the cache or compiled, units side by side.

    folder: where machine code is kept (`cache_folder()` unless given). progress(done, total) is told of kernels when some are compiled.
    Raises CompileError, UnknownKernel, NvrtcMissing.
    """
    target, wanted = compiler.target(cc), units(kernels)
    folder = cache_folder() if folder is None else folder
    total, done = sum(len(one.kernels) for one in wanted), 0
    modules: list[Module] = []
    with ThreadPoolExecutor(max(1, min(len(wanted), os.cpu_count() or 1))) as pool:
        for module in pool.map(lambda one: compile_unit(one, target, compiler, folder), wanted):
            modules.append(module)
            done += len(module.kernels)
            if progress and any(made.compiled for made in modules):
                progress(done, total)
    if any(module.compiled for module in modules):
        _remove_old(folder)
    return modules


def compile_unit(one: Unit, target: str, compiler: Nvrtc, folder: Path) -> Module:
    """Machine code of one unit: see compile_kernels."""
    kept = folder / f"{_key(one, target, compiler)}.cubin"
    try:
        image = kept.read_bytes()
        os.utime(kept)
        return Module(one.kernels, image, "", False)
    except OSError:
        pass
    includes = [f"-I{path}" for path in include_folders()]
    made = compiler.compile(one.text, one.name, target, [*OPTIONS, *includes], one.headers)
    _keep(kept, made.image)
    return Module(one.kernels, made.image, made.log, True)


def _key(one: Unit, target: str, compiler: Nvrtc) -> str:
    digest = hashlib.sha256(repr((compiler.version, str(compiler.path), target, OPTIONS, one.text)).encode())
    for name, text in one.headers.items():
        digest.update(f"{name}\0{text}\0".encode())
    return f"{target}-{one.file.removesuffix('.cuh')}-{digest.hexdigest()[:24]}"


def cache_folder() -> Path:
    """Where machine code is kept; need not exist."""
    from ggrun.runtime.kept import cache_base

    return cache_base() / "cuda"


def _keep(path: Path, image: bytes) -> None:
    """Write whole or not at all; a folder that is full or cannot be written is no error."""
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            part = file.name
            file.write(image)
        os.replace(part, path)
    except OSError:
        if part:
            Path(part).unlink(missing_ok=True)


def _remove_old(folder: Path) -> None:
    """Remove all but the KEEP last used files."""
    try:
        found = sorted(folder.glob("*.cubin"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEEP:]:
            path.unlink(missing_ok=True)
    except OSError:
        return
