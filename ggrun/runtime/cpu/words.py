"""Reading and writing memory by address from compiled code: scalars, and named fields of step descriptors and the control block.

Field names are resolved while compiling, so `field(step, "x_stride")` is one load. Knows no ops.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ggrun.runtime.cpu.layout import CONTROL, STEP
from quant.simd import I64


def _loader(llvm_type, numba_type, align: int):
    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, signature, args):
            return builder.load(builder.inttoptr(args[0], llvm_type.as_pointer()), align=align)

        return numba_type(types.int64), codegen

    return load


def _storer(llvm_type, numba_type, align: int):
    @intrinsic
    def store(typingctx, address, value):
        def codegen(context, builder, signature, args):
            builder.store(args[1], builder.inttoptr(args[0], llvm_type.as_pointer()), align=align)
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), codegen

    return store


load_i64 = _loader(I64, types.int64, 8)
load_i32 = _loader(ir.IntType(32), types.int32, 4)
load_f32 = _loader(ir.FloatType(), types.float32, 4)
load_f64 = _loader(ir.DoubleType(), types.float64, 8)
store_i64 = _storer(I64, types.int64, 8)
store_i32 = _storer(ir.IntType(32), types.int32, 4)
store_i8 = _storer(ir.IntType(8), types.int8, 1)
store_f32 = _storer(ir.FloatType(), types.float32, 4)


def _field_of(offsets, llvm_type, numba_type):
    @intrinsic(prefer_literal=True)
    def field(typingctx, base, name):
        offset = offsets[name.literal_value]

        def codegen(context, builder, signature, args):
            address = builder.add(args[0], ir.Constant(I64, offset))
            return builder.load(builder.inttoptr(address, llvm_type.as_pointer()), align=8)

        return numba_type(base, name), codegen

    return field


field = _field_of(STEP, I64, types.int64)  # field(step, "x") -> int64
real = _field_of(STEP, ir.DoubleType(), types.float64)  # real(step, "f0") -> float64
control_field = _field_of(CONTROL, I64, types.int64)  # control_field(control, "n_tokens") -> int64


@intrinsic(prefer_literal=True)
def word(typingctx, control, name):
    """Address of a control block's field, for atomics."""
    offset = CONTROL[name.literal_value]

    def codegen(context, builder, signature, args):
        return builder.add(args[0], ir.Constant(I64, offset))

    return types.int64(control, name), codegen
