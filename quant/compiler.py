"""From a Python function to object code, through Numba. Imported only by who has something to compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

_INT = ir.IntType(64)


@global_compiler_lock  # type: ignore[untyped-decorator]
def object_code(function: Callable[..., Any], name: str) -> bytes:
    """An object file with the C function `name`: every argument an int64, the result an int64 or nothing.

    It needs neither Python nor Numba's runtime: nothing in it allocates, and what would raise an exception in Python returns 0.
    """
    typing, target = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    target.refresh()
    flags = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    flags.nrt = False
    flags.error_model = "numpy"  # divisions are the processor's
    arguments = [types.int64] * len(inspect.signature(function).parameters)
    compiled = compiler.compile_extra(typing, target, function, arguments, None, flags, {})
    compiled.library.add_ir_module(_entry(target, compiled.fndesc, name))
    compiled.library.enable_object_caching()
    compiled.library.finalize()
    code: bytes = compiled.library._get_compiled_object()
    return code


def _entry(target: Any, described: Any, name: str) -> ir.Module:
    """A module with the C function, which calls Numba's own by Numba's convention; the two become one when the library is optimized."""
    module = target.codegen().create_library(name).create_ir_module(name)
    nothing = described.restype == types.none
    entry = ir.Function(module, ir.FunctionType(ir.VoidType() if nothing else _INT, [_INT] * len(described.argtypes)), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    callee = target.declare_function(module, described)
    _, result = target.call_conv.call_function(builder, callee, described.restype, described.argtypes, entry.args)
    if nothing:
        builder.ret_void()
    else:
        builder.ret(result)
    return module
