"""From the names of a plan's steps to machine code: loads the kernels they need from the disk cache, or compiles them.

A step "matmul.Q4_K" needs our driver `matmul` and quant.cpu's matrix product of Q4_K. Only what is asked for is compiled, and modules
that import Numba (`MODULES`, quant.cpu.compiled) are imported only for that.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import cache
from ggrun.runtime.executor import Progress
from quant import objects

if TYPE_CHECKING:
    from quant.cpu import ActivationKernel, GetRowKernel, MatmulKernel

    Function = ActivationKernel | MatmulKernel | GetRowKernel

# our functions and the module of ggrun.runtime.cpu each stands in
MODULES: Mapping[str, str] = {
    "lead": "steps",
    "serve": "steps",
    "dismiss": "steps",
    "broken_rule": "checks",
    "touch": "pages",
    "embed": "kernels.rows",
    "take_rows": "kernels.rows",
    "rms_norm": "kernels.norm",
    "rope_table": "kernels.rope",
    "rope": "kernels.rope",
    "query_tiles": "kernels.attention",
    "kv_store": "kernels.attention",
    "attention": "kernels.attention",
    "add": "kernels.pointwise",
    "glu_silu": "kernels.pointwise",
    "quantize": "kernels.matmul",
    "matmul": "kernels.matmul",
    "route": "kernels.experts",
    "group_experts": "kernels.experts",
    "quantize_experts": "kernels.experts",
    "expert_matmul": "kernels.experts",
    "expert_sum": "kernels.experts",
}
_FAMILY = {  # of quant.cpu's functions, by the kernel that drives them
    "quantize": "quantize",
    "quantize_experts": "quantize",
    "matmul": "rows",
    "expert_matmul": "rows",
    "embed": "get_row",
}
_ALWAYS = ("lead", "serve", "dismiss", "broken_rule", "touch")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Address of a step's kernel and, for one that drives a format's own function, that function."""

    address: int
    function: Function | None


def _quant(kernel: str, name: str, tier: str) -> Function:
    """The function of quant.cpu behind a step of this kernel and format (or activation) name."""
    from quant import cpu
    from quant.format import format_by_name

    if _FAMILY[kernel] == "quantize":
        return cpu.activation_kernel(name, tier)
    if _FAMILY[kernel] == "get_row":
        return cpu.get_row_kernel(format_by_name(name), tier)
    return cpu.matmul_kernel(format_by_name(name), tier)


def _own(name: str) -> int:
    """Address of one of our functions, from the cache or compiled."""
    return objects.address(name, lambda: getattr(importlib.import_module(f"ggrun.runtime.cpu.{MODULES[name]}"), name))


def function(name: str, n_arguments: int) -> Callable[..., int]:
    """One of our functions to be called from Python with integers, without holding the interpreter's lock."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * n_arguments)
    return kind(_own(name))


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
    jobs: dict[str, Callable[[], object]] = {name: functools.partial(_own, name) for name in _ALWAYS}
    for name in names:
        kernel, _, fmt = name.partition(".")
        jobs[kernel] = functools.partial(_own, kernel)
        if fmt:
            jobs[f"{_FAMILY[kernel]}.{fmt}.{tier}"] = functools.partial(_quant, kernel, fmt, tier)
    with store.locked(alone=not all(map(objects.kept, jobs))):
        new = [name for name in jobs if not objects.kept(name)]
        for name, job in jobs.items():
            if progress and name in new:
                progress("compile", new.index(name), len(new))
            job()
        if progress and new:
            progress("compile", len(new), len(new))
    kernels = {}
    for name in names:
        kernel, _, fmt = name.partition(".")
        kernels[name] = Kernel(_own(kernel), _quant(kernel, fmt, tier) if fmt else None)
    return kernels, store.note
