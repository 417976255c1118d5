"""NVRTC through ctypes: CUDA C text to machine code for one architecture. Needs no driver, no device and no toolkit.

The library is looked for in GGRUN_NVRTC (a path to libnvrtc.so, for a toolkit of one's own), then in the package nvidia-cuda-nvrtc-cu12,
then where the loader looks. Knows nothing of ggrun's kernels.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ggrun.errors import GgrunError

LIBRARY = "libnvrtc.so.12"
BUILTINS = "libnvrtc-builtins.so*"
INSTALL = "pip install 'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-runtime-cu12==12.9.*'"


class NvrtcMissing(GgrunError):
    """There is no NVRTC, or not one that works: `text` says so, `command` mends it ("" when none does)."""

    def __init__(self, text: str, command: str = "") -> None:
        super().__init__(f"{text}; this mends it: {command}" if command else text)
        self.text, self.command = text, command


class CompileError(GgrunError):
    """A kernel that does not compile; the text is the compiler's log."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code (or PTX, see `Nvrtc.target`) and what the compiler said about it."""

    image: bytes
    log: str


class Nvrtc:
    """One NVRTC library. Safe to use from several threads."""

    def __init__(self, path: str) -> None:
        """path: of the library, or its name for the loader. OSError when it cannot be loaded."""
        self.path = path
        for builtins in sorted(Path(path).parent.glob(BUILTINS)) if "/" in path else ():
            if ".alt." not in builtins.name:
                ctypes.CDLL(str(builtins))  # NVRTC asks the loader for it by name, which finds it only when it is there already
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        self.architectures = tuple(sorted(numbers))

    def target(self, cc: int) -> str:
        """What to compile for a device of compute capability cc (86 for 8.6): `sm_86`, or `compute_NN` (PTX, which the driver finishes) for
        a generation that this compiler does not know yet. Raises NvrtcMissing for a device that it no longer knows."""
        same = [arch for arch in self.architectures if arch // 10 == cc // 10 and arch <= cc]
        if same:
            return f"sm_{same[-1]}"
        if cc > self.architectures[-1]:
            return f"compute_{self.architectures[-1]}"
        raise NvrtcMissing(f"the CUDA compiler {self.name} makes no code for compute capability {cc // 10}.{cc % 10}", INSTALL)

    @property
    def name(self) -> str:
        """For people and for the cache."""
        return "NVRTC {}.{}".format(*self.version)

    def compile(self, text: str, name: str, target: str, options: Sequence[str] = (), headers: Mapping[str, str] | None = None) -> Compiled:
        """Compile CUDA C. name: the file's, for messages; headers: include name to text. Raises CompileError."""
        program = ctypes.c_void_p()
        texts, names = _strings(list((headers or {}).values())), _strings(list(headers or {}))
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), name.encode(), len(headers or {}), texts, names)
        try:
            arguments = [f"-arch={target}", *options]
            failed = self._library.nvrtcCompileProgram(program, len(arguments), _strings(arguments))
            log = self._output(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if failed:
                raise CompileError(f"{name} does not compile for {target} ({self._error(failed)}):\n{log}")
            return Compiled(self._output(program, "CUBIN" if target.startswith("sm_") else "PTX"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        result = getattr(self._library, function)(*arguments)
        if result:
            raise NvrtcMissing(f"the CUDA compiler {self.path} fails: {function}: {self._error(result)}")

    def _error(self, result: int) -> str:
        text: bytes = self._library.nvrtcGetErrorString(result)
        return text.decode()


def _strings(values: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


@functools.cache
def find() -> Nvrtc:
    """The compiler of this process. Raises NvrtcMissing."""
    chosen = os.environ.get("GGRUN_NVRTC")
    tried = [chosen] if chosen else [*packaged(), LIBRARY]
    why = ""
    for path in tried:
        try:
            return Nvrtc(path)
        except (OSError, AttributeError) as error:
            why = str(error)
    if chosen:
        raise NvrtcMissing(f"GGRUN_NVRTC={chosen} cannot be used ({why})", "unset GGRUN_NVRTC")
    raise NvrtcMissing(f"the CUDA compiler NVRTC is not installed ({why})", INSTALL)


def _packages(part: str) -> list[Path]:
    """The folder of nvidia-cuda-PART-cu12, if it is installed."""
    spec = find_spec("nvidia")
    folders = [Path(root) / f"cuda_{part}" for root in (spec.submodule_search_locations or ())] if spec else []
    return [folder for folder in folders if folder.is_dir()]


def packaged() -> list[str]:
    """Paths of the library in nvidia-cuda-nvrtc-cu12, none or one."""
    return [str(path) for folder in _packages("nvrtc") if (path := folder / "lib" / LIBRARY).exists()]


def include_folders() -> list[Path]:
    """Where cuda_fp16.h may lie: in the toolkit around GGRUN_NVRTC, in nvidia-cuda-runtime-cu12, in the usual places."""
    chosen = os.environ.get("GGRUN_NVRTC")
    around = [folder / "include" for folder in Path(chosen).resolve().parents[:4]] if chosen else []
    usual = [Path(root) / "include" for root in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda") if root]
    found = [*around, *(folder / "include" for folder in _packages("runtime")), *usual]
    return [folder for folder in found if (folder / "cuda_fp16.h").exists()]
