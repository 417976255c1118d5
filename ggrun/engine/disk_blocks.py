"""A folder of KV blocks, one file each, named by the tokens that lead to it: what a new process need not compute again.

Several processes may use a folder at once: files appear and go whole. What is damaged is removed. Knows no engine.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.kv_file import KvFileError, Origin, Reader, Writer
from ggrun.errors import GgrunError

SUFFIX = ".kv"
STALE_SECONDS = 3600  # a file half written by a process that ended
RECOUNTS = 16  # while a process writes as much as the folder may hold
TOUCH_SECONDS = 60  # how exact "least recently used" is


@dataclass(frozen=True, slots=True)
class Named:
    """A block's key (see `chain`) and its own tokens."""

    key: bytes
    tokens: tuple[int, ...]


class DiskBlocks:
    """The blocks of one origin in a folder of several, whose files take most_bytes together. GgrunError when the folder cannot be used."""

    def __init__(self, base: Path, origin: Origin, name: str, most_bytes: int) -> None:
        self._base, self._origin, self._most = base, origin, most_bytes
        self.folder = base / name
        try:
            for path in (base, self.folder):
                _private(path)
            self.keys = {bytes.fromhex(entry.name[: -len(SUFFIX)]) for entry in os.scandir(self.folder) if _is_block(entry.name)}
        except OSError as error:
            raise GgrunError(f"the folder {self.folder} for cached prompts cannot be used: {error.strerror}") from error
        self._bytes: int | None = None  # of all files, as far as this process knows; None: to be counted
        self._written = 0  # bytes since they were counted
        self._touched: dict[bytes, float] = {}

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}{SUFFIX}"

    def read(self, named: Named, into: NDArray[np.uint8]) -> bool:
        """A block's bytes; False when it is not there any more, or not what it should be: then it is removed."""
        path = self._path(named.key)
        try:
            with Reader(path, self._origin) as file:
                if tuple(file.tokens) != named.tokens:
                    raise KvFileError("other tokens")
                file.read(into)
                return True
        except FileNotFoundError:
            pass
        except KvFileError:
            path.unlink(missing_ok=True)
        except OSError:  # it cannot be opened just now, as when too many files are open: nothing is known against it
            pass
        self.keys.discard(named.key)
        return False

    def write(self, named: Named, data: NDArray[np.uint8]) -> None:
        """Add a block, and remove the least recently used ones that are too many. OSError."""
        if self._bytes is None:
            self._bytes, self._written = sum(size for _, size, _ in self._files()), 0
        path = self._path(named.key)
        with Writer(path, self._origin, named.tokens) as file:
            file.write(data)
        self.keys.add(named.key)
        self._bytes += file.n_bytes
        self._written += file.n_bytes
        if self._bytes > self._most:
            self._trim()
        elif self._written > self._most // RECOUNTS:  # others may have written, too
            self._bytes = None

    def touch(self, keys: Iterable[bytes]) -> None:
        """They were used just now, the first of them last: what a prompt begins with is the last of it to go."""
        now = time.monotonic()
        for key in reversed([key for key in keys if key in self.keys and now - self._touched.get(key, -1e9) > TOUCH_SECONDS]):
            try:
                os.utime(self._path(key))
                self._touched[key] = now
            except OSError:  # another process removed it
                self.keys.discard(key)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every block of every origin; what a process that ended left half written is removed."""
        found = []
        for folder in [entry.path for entry in os.scandir(self._base) if entry.is_dir(follow_symlinks=False)]:
            for entry in os.scandir(folder):
                try:
                    about = entry.stat(follow_symlinks=False)
                    if _is_block(entry.name):
                        found.append((about.st_mtime, about.st_size, Path(entry.path)))
                    elif entry.name.endswith(".tmp") and time.time() - about.st_mtime > STALE_SECONDS:
                        os.unlink(entry.path)
                except FileNotFoundError:  # another process removed it
                    continue
        return found

    def _trim(self) -> None:
        """Down to nine tenths of what is allowed."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._most * 9 // 10:
                break
            path.unlink(missing_ok=True)
            total -= size
            if path.parent == self.folder:
                key = bytes.fromhex(path.name[: -len(SUFFIX)])
                self.keys.discard(key)
                self._touched.pop(key, None)
        self._bytes, self._written = total, 0


def _is_block(name: str) -> bool:
    stem = name.removesuffix(SUFFIX)
    return len(stem) == 32 and name.endswith(SUFFIX) and all(c in "0123456789abcdef" for c in stem)


def _private(path: Path) -> None:
    """Make a folder that only its owner can enter, or see that it is one."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise GgrunError(f"{path} is not a folder of its own; cached prompts are kept in one that only you can enter")
    if about.st_uid != os.getuid():
        raise GgrunError(f"{path} belongs to another user; cached prompts are kept in a folder that only you can enter")
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise GgrunError(f"{path} is open to other users; cached prompts are kept in a folder that only you can enter: chmod 700 {path}")
