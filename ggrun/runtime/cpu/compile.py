"""From the names of a plan's steps to machine code: compiles the kernels they need, or loads them from the disk cache.

A step "matmul.Q4_K" needs our driver `matmul` and quant.cpu's matrix product of Q4_K. Only what is asked for is compiled.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import cache
from ggrun.runtime.executor import Progress

if TYPE_CHECKING:
    from quant.cpu import ActivationKernel, GetRowKernel, MatmulKernel

    Function = ActivationKernel | MatmulKernel | GetRowKernel

# our kernels and the module of ggrun.runtime.cpu.kernels each stands in
MODULES: Mapping[str, str] = {
    "embed": "rows",
    "take_rows": "rows",
    "rms_norm": "norm",
    "rope_table": "rope",
    "rope": "rope",
    "query_tiles": "attention",
    "kv_store": "attention",
    "attention": "attention",
    "add": "pointwise",
    "glu_silu": "pointwise",
    "quantize": "matmul",
    "matmul": "matmul",
    "route": "experts",
    "group_experts": "experts",
    "quantize_experts": "experts",
    "expert_matmul": "experts",
    "expert_sum": "experts",
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Address of a step's kernel and, for one that drives a format's own function, that function."""

    address: int
    function: Function | None


def _quant(kernel: str, name: str, tier: str) -> Function:
    """The function of quant.cpu behind a step of this kernel and format (or activation) name."""
    from quant import cpu
    from quant.format import format_by_name

    if kernel in ("quantize", "quantize_experts"):
        return cpu.activation_kernel(name, tier)
    if kernel == "embed":
        return cpu.get_row_kernel(format_by_name(name), tier)
    return cpu.matmul_kernel(format_by_name(name), tier)


@functools.cache
def _own(name: str) -> int:
    """Compile or load one of our kernels; its address stays good for the life of the process."""
    from numba import cfunc, types

    module = importlib.import_module(f"ggrun.runtime.cpu.kernels.{MODULES[name]}")
    compiled = cfunc(types.int64(*[types.int64] * 4), cache=True, error_model="numpy")(getattr(module, name))
    _compiled.append(compiled)
    return int(compiled.address)


_compiled: list[object] = []  # keeps the machine code


def _module(name: str) -> ModuleType:
    """What is compiled when imported."""
    return importlib.import_module(f"ggrun.runtime.cpu.{name}")


def load(steps: Iterable[str], tier: str | None, progress: Progress | None = None) -> tuple[Mapping[str, Kernel], str]:
    """Kernels by step name, and a note for the user ("" when there is nothing to say).

    tier: None for the best this processor runs. progress gets the stage "compile" when something is not in the cache.
    """
    store = cache.use()
    from quant.simd import tiers

    try:
        tier = tier or tiers()[0]
    except ValueError as error:
        raise GgrunError(f"{error}") from error
    names = sorted(set(steps))
    jobs: dict[str, Callable[[], object]] = {name: functools.partial(_module, name) for name in ("team", "checks")}
    for name in names:
        kernel, _, fmt = name.partition(".")
        jobs[kernel] = functools.partial(_own, kernel)
        if fmt:
            jobs[f"{_FAMILY.get(kernel, kernel)}.{fmt}.{tier}"] = functools.partial(_quant, kernel, fmt, tier)
    with store.locked(alone=not store.compiled() >= jobs.keys()):
        new = [name for name in jobs if name not in store.compiled()]
        for name, job in jobs.items():
            if progress and name in new:
                progress("compile", new.index(name), len(new))
            job()
            if name in new:
                store.add(name)
        if progress and new:
            progress("compile", len(new), len(new))
    kernels = {}
    for name in names:
        kernel, _, fmt = name.partition(".")
        kernels[name] = Kernel(_own(kernel), _quant(kernel, fmt, tier) if fmt else None)
    return kernels, store.note


_FAMILY = {"quantize_experts": "quantize", "expert_matmul": "matmul"}  # kernels that drive the same function of quant.cpu
