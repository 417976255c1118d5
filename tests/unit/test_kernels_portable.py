"""The plain tier compiled for other processors: it needs no instruction and no library function they may lack."""

from __future__ import annotations

import re
from collections.abc import Callable

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from quant.cpu.arguments import Product, Source
from quant.cpu.compiled import emit_activation, emit_get_row, emit_matmul
from quant.simd import F16, F32, I64, TARGETS, Emitter
from tests.unit.kernels import NAMES

CALLS = {  # how a call looks in assembly
    "aarch64-linux-gnu": r"\sbl\s+(\S+)",
    "x86_64-linux-gnu": r"\scallq?\s+(\S+)",
}
every_processor = pytest.mark.parametrize("triple", ["aarch64-linux-gnu", pytest.param("x86_64-linux-gnu", marks=pytest.mark.slow)])


def assembly(triple: str, n_arguments: int, body: Callable[..., None]) -> str:
    """Assembly for a bare processor of that kind, with no optional features."""
    module = ir.Module("kernel")
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_arguments), "kernel")
    builder = ir.IRBuilder(function.append_basic_block())
    body(Emitter(builder, TARGETS["plain"]), *function.args)
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu="generic", opt=1)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return machine.emit_assembly(parsed)


@every_processor
@pytest.mark.parametrize("name", NAMES)
def test_product_and_row(name: str, triple: str) -> None:
    code = assembly(triple, 10, lambda e, *values: emit_matmul(e, name, Product(*values)))
    code += assembly(triple, 3, lambda e, *values: emit_get_row(e, name, *values))
    assert "kernel" in code
    assert re.findall(CALLS[triple], code) == [], "calls a function"


@every_processor
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q8_k"])
def test_quantizer(kind: str, triple: str) -> None:
    code = assembly(triple, 8, lambda e, *values: emit_activation(e, kind, Source(*values)))
    assert re.findall(CALLS[triple], code) == [], "calls a function"


@pytest.mark.slow
def test_a_call_would_be_seen() -> None:
    code = assembly("x86_64-linux-gnu", 1, lambda e, at: e.store(e.b.fpext(e.load(at, F16), F32), at))
    assert re.findall(CALLS["x86_64-linux-gnu"], code) != []
