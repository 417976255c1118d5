"""Where compiled kernels are kept between runs: one folder per source, compiler and processor, found without importing Numba.

The folder's name is a hash of all sources a kernel may be made of, of the compiler's version and settings, and of the processor.
A lock keeps two first runs from doing the same work at once.
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
from importlib.util import find_spec
from pathlib import Path

from ggrun.runtime.kept import cache_base
from quant import objects
from quant.processor import processor

KEEP = 3  # folders: the current one and the last used others


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


@functools.cache
def use() -> Cache:
    """Keep this process's kernels in its folder; once, before the first is asked for."""
    kernels = cache_base() / "kernels"
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
    objects.keep_in(folder)
    return Cache(folder, note)


def _sources() -> Sequence[Path]:
    """Every file that a kernel's machine code may depend on."""
    from ggrun.plan import device
    from quant.cpu import source_files

    return sorted({*source_files(), *Path(__file__).parent.rglob("*.py"), Path(device.__file__)})


def _key() -> str:
    """Hash of the sources, of the compiler with its settings, and of the processor."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_") or name == "GGRUN_CPU_TIER"}
    digest = hashlib.sha256(repr((sys.version, processor(), sorted(settings.items()))).encode())
    for path in (*_sources(), *map(_version_file, ("numba", "llvmlite"))):
        digest.update(f"{path.parent.name}/{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _version_file(package: str) -> Path:
    """What says a package's version, without importing it."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    return Path(str(spec.origin)).with_name("_version.py")


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
