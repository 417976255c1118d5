"""Where compiled kernels are kept between runs: one folder per source and processor, found before any kernel is imported.

Numba looks only at the file a kernel stands in, so the folder's name is a hash of all sources a kernel may be made of, of the
versions of the compiler and of the processor. A lock keeps two first runs from compiling, and numbering their files, at once.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEEP = 3  # folders: the current one and the last used others
_LIST = "compiled.txt"


@dataclass(frozen=True, slots=True)
class Cache:
    """The folder in use, and what to tell the user when it is not the usual one ("" otherwise)."""

    folder: Path
    note: str

    @contextmanager
    def locked(self, alone: bool) -> Iterator[None]:
        """Hold the folder's lock; `alone` to compile, shared to load."""
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def compiled(self) -> frozenset[str]:
        """Names of the kernels the folder holds."""
        try:
            return frozenset((self.folder / _LIST).read_text().split())
        except OSError:
            return frozenset()

    def add(self, name: str) -> None:
        """Book a kernel. Only under the lock, alone."""
        with (self.folder / _LIST).open("a") as file:
            file.write(f"{name}\n")


@functools.cache
def use() -> Cache:
    """Point Numba at this process's folder; once, before the first kernel is imported."""
    import numba

    base = os.environ.get("GGRUN_CACHE_DIR")
    if base is None:
        from platformdirs import user_cache_path

        base = str(user_cache_path("ggrun"))
    kernels = Path(base) / "kernels"
    folder, note = kernels / _key(), ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
        os.utime(folder)
        _remove_old(kernels, folder)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="ggrun-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        note = (
            f"compiled kernels cannot be kept in {kernels} ({error.strerror}), so every start compiles them again; "
            "the variable GGRUN_CACHE_DIR sets another folder"
        )
    numba.config.CACHE_DIR = str(folder)
    return Cache(folder, note)


def _sources() -> Sequence[Path]:
    """Every file that a kernel's machine code may depend on."""
    from ggrun.plan import device
    from quant.cpu import source_files

    return sorted({*source_files(), *Path(__file__).parent.rglob("*.py"), Path(device.__file__)})


def _key() -> str:
    """Hash of the sources (with place and time, which Numba compares too), compiler and processor."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    processor = cpu_target.target_context.codegen().magic_tuple()
    facts = (sys.version, numba.__version__, llvmlite.__version__, processor, os.environ.get("GGRUN_CPU_TIER", ""))
    digest = hashlib.sha256(repr(facts).encode())
    for path in _sources():
        digest.update(f"{path}\0{path.stat().st_mtime_ns}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _remove_old(kernels: Path, current: Path) -> None:
    """Remove all but the KEEP last used folders; one that another process holds stays."""
    folders = [path for path in kernels.iterdir() if path.is_dir() and path != current]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[KEEP - 1 :]:
        try:
            with (folder / ".lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
