"""Opening models: one file or all files of a split, seen as one set of names.

Knows how header, bytes and splits come together; must not know any architecture.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType

from ggrun.gguf.error import GgufError, quoted
from ggrun.gguf.fingerprint import fingerprint
from ggrun.gguf.header import Header, read_header
from ggrun.gguf.mapping import LOAD_MODES, FileBytes, Progress
from ggrun.gguf.metadata import Value
from ggrun.gguf.split import check_part, check_tensor_count, part_paths
from ggrun.gguf.tensor import Tensor
from quant.format import FORMATS


class GgufFile:
    """An open model. Metadata and descriptions are read and checked; weights are mapped, and read when they are looked at.

    A context manager. Metadata arrays and `Tensor.raw` views already taken stay valid after `close`; addresses do not.
    """

    def __init__(self, parts: list[tuple[FileBytes, Header]], tensors: dict[str, Tensor]) -> None:
        first, header = parts[0]
        self._parts = parts
        self.path = first.path
        self.paths: tuple[str, ...] = tuple(part.path for part, _ in parts)
        """Every file of the model, in order; one unless it is split."""
        self.version = header.version
        self.alignment = header.alignment
        self.n_bytes = sum(part.size for part, _ in parts)
        """Size of all files."""
        self.data_bytes = sum(h.data_end - h.data_start for _, h in parts)
        """Bytes of tensor data with the padding between tensors: what a private copy takes."""
        self.metadata: Mapping[str, Value] = MappingProxyType(dict(header.metadata))
        self.tensors: Mapping[str, Tensor] = MappingProxyType(tensors)
        self.load_mode = "mmap"
        """Where the weights are now: "mmap" (pages of the files), "none" (private memory), "mlock" (locked pages of the files)."""
        self.notes: list[str] = []
        """What the person should know of the way the file was loaded; sentences."""

    def load(self, mode: str = "auto", progress: Progress | None = None) -> None:
        """Bring the weights to where `mode` wants them, one of LOAD_MODES; "auto" is "mmap".

        mmap: the kernel is told to read ahead. mlock: so that pages stay in RAM; when the system refuses, a note says so.
        none: a private copy in huge pages, kept from then on; every tensor's address changes. `progress("load", done, total)` counts
        bytes. GgufError when a tensor's format cannot be computed with, a file changed since it was opened, or there is no memory.
        """
        if mode not in LOAD_MODES:
            raise GgufError(f"load mode '{mode}' is unknown; choose one of {', '.join(LOAD_MODES)}")
        self.check_readable()
        for part, _ in self._parts:
            part.check_size()
        if self.load_mode == "none":
            return
        if mode == "none":
            self._load_privately(progress)
        elif mode in ("mlock", "mmap+mlock"):
            self._lock()
        elif self.data_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):  # else reading ahead only evicts itself
            for part, header in self._parts:
                part.prefetch(header.data_start, header.data_end)
        if progress and mode != "none":
            progress("load", self.data_bytes, self.data_bytes)

    def check_readable(self) -> None:
        """GgufError that names the first tensor whose format can only be described, if there is one."""
        unreadable = [t for t in self.tensors.values() if not t.readable]
        if unreadable:
            first, others = unreadable[0], len(unreadable) - 1
            more = f" and {others} more" if others else ""
            raise GgufError(
                f"{self.paths[first.file_index]}: tensor {quoted(first.name)}{more}: the type {first.format.name} is not supported; "
                f"get the model in one of {', '.join(fmt.name for fmt in FORMATS.values())}"
            )

    def _load_privately(self, progress: Progress | None) -> None:
        done = 0

        def report(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress("load", done, self.data_bytes)

        for part, header in self._parts:
            part.read_privately(header.data_start, header.data_end, report)
        self.load_mode = "none"

    def _lock(self) -> None:
        for part, header in self._parts:
            problem = part.lock(header.data_start, header.data_end)
            if problem:
                self.notes.append(
                    f"The weights could not be locked in RAM ({problem}); they stay mapped and may be paged out. "
                    "Raise the limit with `ulimit -l` (RLIMIT_MEMLOCK) to lock them."
                )
                return
        self.load_mode = "mlock"

    def fingerprint(self) -> str:
        """Hexadecimal; alike for copies of a model, different for other weights (`fingerprint`). GgufError when a file cannot be read."""
        try:
            return fingerprint((part.path, header.data_start, header.data_end) for part, header in self._parts)
        except OSError as error:
            raise GgufError(f"{self.path} cannot be read any more: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the weights and the files."""
        for part, _ in self._parts:
            part.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str], load_mode: str = "auto") -> GgufFile:
    """Open the model at `path`, with all its files when it is any one of a split.

    With `load_mode` "none" or "mlock" the weights are loaded at once; "auto" and "mmap" leave them mapped and unread (see
    `GgufFile.load`). GgufError on anything wrong with the files: one sentence that names the file and the field.
    """
    if load_mode not in LOAD_MODES:
        raise GgufError(f"load mode '{load_mode}' is unknown; choose one of {', '.join(LOAD_MODES)}")
    file = _open_parts(os.fspath(path))
    if load_mode not in ("auto", "mmap"):
        try:
            file.load(load_mode)
        except BaseException:
            file.close()
            raise
    return file


def _open_parts(path: str) -> GgufFile:
    opened: list[FileBytes] = []
    try:
        given, given_header = _open_part(path, opened)
        paths = part_paths(path, given_header.metadata)
        parts: list[tuple[FileBytes, Header]] = []
        for index, part_path in enumerate(paths):
            if part_path == path:
                parts.append((given, given_header))
                continue
            if not os.path.exists(part_path):
                raise GgufError(f"{path} is one of {len(paths)} files of a model, and {part_path} is missing; put them in one folder")
            parts.append(_open_part(part_path, opened))
            check_part(part_path, index, len(paths), parts[-1][1].metadata)
        tensors = _all_tensors(parts)
        if len(parts) > 1:
            check_tensor_count(path, len(tensors), given_header.metadata)
        return GgufFile(parts, tensors)
    except BaseException:
        for part in opened:
            part.close()
        raise


def _open_part(path: str, opened: list[FileBytes]) -> tuple[FileBytes, Header]:
    part = FileBytes(path)
    opened.append(part)
    return part, read_header(part.header(), path)


def _all_tensors(parts: list[tuple[FileBytes, Header]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for index, (part, header) in enumerate(parts):
        for info in header.tensors:
            if info.name in tensors:
                raise GgufError(f"{part.path}: tensor {quoted(info.name)} is also in {parts[tensors[info.name].file_index][0].path}")
            tensors[info.name] = Tensor(info.name, info.dims, info.format, info.offset, info.n_bytes, index, part)
    return tensors
