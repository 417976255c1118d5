"""Files of KV blocks: a slot's, or one block of the disk's cache. Nothing in them is believed before its checksum was.

    magic "GGRUNKV1"
    u32, the header's bytes; the header, JSON: model, form (hexadecimal), types, n_tokens, block_bytes
    n_tokens int32, the tokens
    BLAKE2b-128 of all of the above
    for every 32 tokens, the last begun or not: block_bytes as in `runtime.kv_form`, then BLAKE2b-128 of them
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import stat
import struct
import time
from array import array
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS

MAGIC = b"GGRUNKV1"
SUM_BYTES = 16
_MOST_HEADER = 1 << 16


class KvFileError(GgrunError):
    """A file that is damaged, cut short, or of something else."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What keys and values belong to: the model (hexadecimal fingerprint), the form of its blocks, and the types in words."""

    model: str
    form: str
    types: str
    block_bytes: int


def n_blocks(n_tokens: int) -> int:
    """Blocks of so many tokens."""
    return -(-n_tokens // KV_BLOCK_TOKENS)


def file_bytes(origin: Origin, n_tokens: int) -> int:
    """Size of a file with so many tokens."""
    return len(_head(origin, [0] * n_tokens)) + SUM_BYTES + n_blocks(n_tokens) * (origin.block_bytes + SUM_BYTES)


def _head(origin: Origin, tokens: Seq[int]) -> bytes:
    header = json.dumps(
        {"model": origin.model, "form": origin.form, "types": origin.types, "n_tokens": len(tokens), "block_bytes": origin.block_bytes}
    ).encode()
    return MAGIC + struct.pack("<I", len(header)) + header + array("i", tokens).tobytes()


def _sum(data: bytes | NDArray[np.uint8]) -> bytes:
    return blake2b(data if isinstance(data, bytes) else data.data, digest_size=SUM_BYTES).digest()


class Writer:
    """Writes a file beside its place and moves it there when all blocks are in; a context manager that leaves nothing when that fails.

    The file is its owner's alone. OSError as the system says.
    """

    def __init__(self, path: Path, origin: Origin, tokens: Seq[int]) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._left = n_blocks(len(tokens))
        self._file = os.fdopen(os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        head = _head(origin, tokens)
        self.n_bytes = self._file.write(head) + self._file.write(_sum(head))

    def write(self, block: NDArray[np.uint8]) -> None:
        """The next block."""
        self.n_bytes += self._file.write(block.data) + self._file.write(_sum(block))
        self._left -= 1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                assert self._left == 0, "every token's block was written"
                os.replace(self._beside, self._path)
        finally:
            self._beside.unlink(missing_ok=True)


def sweep(path: Path, seconds: float) -> None:
    """Remove what processes that were killed have left beside a file, half written and untouched for so long. OSError."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - left.lstat().st_mtime > seconds:
                left.unlink()


class Reader:
    """Reads a file of this origin; a context manager. `tokens` are checked, blocks as they are read. KvFileError, OSError."""

    def __init__(self, path: Path, origin: Origin) -> None:
        self._path, self._origin = path, origin
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe must not wait for a writer
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            os.close(handle)
            raise KvFileError(f"{path} is no file of keys and values that ggrun wrote")
        self._file: BinaryIO = os.fdopen(handle, "rb")
        try:
            self.n_bytes = about.st_size
            self.tokens = self._read_head()
        except BaseException:
            self._file.close()
            raise

    def _read_head(self) -> list[int]:
        start = self._file.read(len(MAGIC) + 4)
        if start[: len(MAGIC)] != MAGIC:
            raise KvFileError(f"{self._path} is no file of keys and values that ggrun wrote")
        n_header = struct.unpack("<I", start[len(MAGIC) :])[0] if len(start) == len(MAGIC) + 4 else 0
        if not 0 < n_header <= _MOST_HEADER:
            raise self._damaged("its header")
        header = self._file.read(n_header)
        try:
            said = json.loads(header)
            found = Origin(*(said[name] for name in ("model", "form", "types", "block_bytes")))
            n_tokens = said["n_tokens"]
        except (ValueError, KeyError, TypeError):
            raise self._damaged("its header") from None
        if not isinstance(n_tokens, int) or not 0 <= 4 * n_tokens <= self.n_bytes:
            raise self._damaged("the number of its tokens")
        raw = self._file.read(4 * n_tokens)
        if self._file.read(SUM_BYTES) != _sum(start + header + raw):
            raise self._damaged("its header")
        if found.model != self._origin.model:
            raise KvFileError(f"{self._path} was saved with another model; keys and values cannot be exchanged between models")
        if found != self._origin:
            raise KvFileError(f"{self._path} holds {found.types} and the model is open with {self._origin.types}: -ctk and -ctv must agree")
        expected = file_bytes(found, n_tokens)
        if self.n_bytes != expected:
            raise KvFileError(f"{self._path} has {self.n_bytes} bytes instead of {expected}: it was cut short or added to")
        return array("i", raw).tolist()

    def read(self, into: NDArray[np.uint8]) -> None:
        """The next block."""
        if self._file.readinto(into.data) != len(into) or self._file.read(SUM_BYTES) != _sum(into):  # type: ignore[attr-defined]
            raise self._damaged("a block")

    def _damaged(self, what: str) -> KvFileError:
        return KvFileError(f"{self._path} is damaged: {what} is not what was written")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
