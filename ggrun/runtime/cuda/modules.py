"""Kernels by name: compiled or found in the cache (`sources`), loaded onto the device of the current context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ggrun.errors import GgrunError
from ggrun.runtime.cuda import nvrtc, sources
from ggrun.runtime.cuda.launch import Arch
from ggrun.runtime.executor import Progress


def load(driver: Any, names: Sequence[str], arch: Arch, progress: Progress | None) -> dict[str, Any]:
    """PyCUDA functions by kernel name; the module of each lives as long as it does. GgrunError when one cannot be compiled or loaded."""
    functions: dict[str, Any] = {}
    told = partial(progress, "compile for the GPU") if progress else None
    for module in sources.compile_kernels(names, arch.cc, nvrtc.find(), progress=told):
        try:
            loaded = driver.module_from_buffer(module.image)
            functions.update((name, loaded.get_function(name)) for name in module.kernels)
        except driver.Error as error:
            raise GgrunError(
                f"the driver does not take the machine code of {module.kernels[0]} ({error}); "
                f"if it was damaged, removing {sources.cache_folder()} helps, else a newer driver"
            ) from None
    return functions
