"""Compiled functions by name: linked from the object files of a folder, or compiled and put there.

Linking needs LLVM and no Numba, whose import takes longer than all of this. A file is trusted when it is whole: it begins with the
hash of its code. Whose folder it is, and when its files are out of date, is the caller's affair.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HASH_BYTES = 32
_folder: Path | None = None
_read: dict[str, bytes] = {}  # code that was read and not yet linked
_addresses: dict[str, int] = {}
_code: list[Any] = []  # what LLVM linked; it stays as long as it is referred to


def keep_in(folder: Path) -> None:
    """From now on look for object files there, and leave new ones there."""
    global _folder
    _folder = folder


def kept(name: str) -> bool:
    """Whether there is a function's file, and it is whole."""
    if _folder is None:
        return False
    if name not in _read:
        try:
            content = _path(name).read_bytes()
        except OSError:
            return False
        code = content[_HASH_BYTES:]
        if content[:_HASH_BYTES] != hashlib.sha256(code).digest():
            return False
        _read[name] = code
    return True


def address(name: str, function: Callable[[], Callable[..., Any]]) -> int:
    """Address of the C function `name`, good for the life of the process. `function` gives what to compile when no file has it."""
    if name not in _addresses:
        if kept(name):
            code = _read.pop(name)
        else:
            from quant.compiler import object_code

            code = object_code(function(), name)
            if _folder:
                _keep(name, code)
        _addresses[name] = _link(name, code)
    return _addresses[name]


def _path(name: str) -> Path:
    assert _folder
    return _folder / f"{name}.o"


def _keep(name: str, code: bytes) -> None:
    """Put the file in its place at once: who reads it sees all of it or nothing. On a full disk the next start compiles again."""
    path = _path(name)
    new = path.with_suffix(f".{os.getpid()}")
    try:
        new.write_bytes(hashlib.sha256(code).digest() + code)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)


@functools.cache
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_lljit_compiler(machine, use_jit_link=True)


def _link(name: str, code: bytes) -> int:
    """Load a function; RuntimeError when its code asks for a symbol that the C library does not have."""
    from llvmlite.binding import JITLibraryBuilder

    library = JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(name).link(_linker(), name)
    _code.append(library)
    return int(library[name])
