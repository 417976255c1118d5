"""Vector code for Numba: a thin layer over LLVM IR from which every CPU kernel is made, and the targets it can aim at.

A kernel body is a Python function that takes an `Emitter` and integer addresses (LLVM i64 values) and emits explicit vector
instructions; loops carry their state in phis, tiles are unrolled by Python loops. Operations that processors spell differently
(byte dot products, float16, fused multiply-add) have one name here and one lowering per `Target`; everything else is generic
LLVM, which runs anywhere. Knows nothing of formats, ops or threads.

Rules: loads and stores are unaligned unless said; nothing is fast-math; an intrinsic is only emitted for a target that has it
(LLVM aborts the process otherwise).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()

Value = Any
"""An LLVM value. Addresses and counts are i64."""


def vec(element: ir.Type, lanes: int) -> ir.VectorType:
    """The type <lanes x element>."""
    return ir.VectorType(element, lanes)


@dataclass(frozen=True, slots=True)
class Target:
    """What a tier's instructions are: `lanes` 32-bit lanes a vector, and which lowerings apply.

    `features` are the LLVM feature names that must be on. `vnni` is the dot product of four unsigned with four signed bytes a
    lane, on whole vectors; `avx2` the 32-byte multiply-adds; `fma` and `f16c` the fused multiply-add and the float16
    conversion. `panel_vectors` and `tile_tokens` size the register tile of a matrix product: that many vectors of rows by that
    many tokens.
    """

    name: str
    lanes: int
    features: frozenset[str]
    vnni: bool
    avx2: bool
    fma: bool
    f16c: bool
    panel_vectors: int
    tile_tokens: int


_AVX2 = frozenset({"avx2", "fma", "f16c"})

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("avx512", 16, _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}, True, True, True, True, 2, 4),
            Target("avxvnni", 8, _AVX2 | {"avxvnni"}, True, True, True, True, 2, 4),
            Target("avx2", 8, _AVX2, False, True, True, True, 2, 4),
            Target("plain", 4, frozenset(), False, False, False, False, 2, 4),
        )
    }
)
"""Every tier, best first. "plain" needs nothing and runs on any processor."""


@functools.cache
def tiers() -> tuple[str, ...]:
    """Names of the tiers that this process's kernels may use, best first.

    Asks for what Numba compiles for rather than what the processor has, so that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are honoured.
    GGRUN_CPU_TIER=name leaves only that one; ValueError when it names none of those that can run.
    """
    from quant.processor import processor

    present = {flag[1:] for flag in processor().features.split(",") if flag.startswith("+")}
    able = tuple(name for name, target in TARGETS.items() if target.features <= present)
    wanted = os.environ.get("GGRUN_CPU_TIER")
    if not wanted:
        return able
    if wanted not in able:
        raise ValueError(f"GGRUN_CPU_TIER={wanted} cannot be used here; this processor runs: {', '.join(able)}")
    return (wanted,)


class Emitter:
    """Emits instructions for one target at the builder's position."""

    def __init__(self, builder: ir.IRBuilder, target: Target) -> None:
        self.b = builder
        self.target = target

    # -- constants and shapes -------------------------------------------------------------------------------------------

    def const(self, value: int | float, type_: ir.Type = I64) -> Value:
        """A scalar constant, or for a vector type that constant in every lane."""
        if isinstance(type_, ir.VectorType):
            return self.table(type_, [value] * type_.count)
        return ir.Constant(type_, value)

    def table(self, type_: ir.VectorType, values: Sequence[int | float]) -> Value:
        """A vector constant, lane by lane."""
        return ir.Constant(type_, [ir.Constant(type_.element, value) for value in values])

    def zero(self, type_: ir.Type) -> Value:
        """Zero of any scalar or vector type."""
        return ir.Constant(type_, None) if isinstance(type_, ir.VectorType) else ir.Constant(type_, 0)

    def cast(self, value: Value, type_: ir.Type) -> Value:
        """The same bits as another type."""
        return value if value.type == type_ else self.b.bitcast(value, type_)

    def splat(self, scalar: Value, lanes: int) -> Value:
        type_ = vec(scalar.type, lanes)
        first = self.b.insert_element(ir.Constant(type_, ir.Undefined), scalar, self.const(0, I32))
        return self.shuffle(first, [0] * lanes)

    def shuffle(self, a: Value, lanes: Sequence[int], b: Value = None) -> Value:
        """Lanes picked from a, or from a then b."""
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        return self.b.shuffle_vector(a, other, self.table(vec(I32, len(lanes)), lanes))

    def part(self, a: Value, first: int, count: int) -> Value:
        return self.shuffle(a, range(first, first + count))

    def concat(self, a: Value, b: Value) -> Value:
        return self.shuffle(a, range(2 * a.type.count), b)

    def spread(self, a: Value, lanes: Sequence[int], signed: bool) -> Value:
        """Bytes picked from a (at most 16) and widened: <n x i8> -> <len(lanes) x i16>."""
        n, wide = a.type.count, vec(I16, len(lanes))
        if not self.target.avx2:
            picked = self.shuffle(a, lanes)
            return (self.b.sext if signed else self.b.zext)(picked, wide)
        # One byte shuffle, with zeros beside the bytes; LLVM left to itself widens first and takes two. Signed: shifted down again.
        every = self.shuffle(a, [lane % n for lane in range(2 * len(lanes))])
        control = [index for pick in lanes for index in ((-128, pick) if signed else (pick, -128))]
        pairs = self.cast(self.byte_shuffle(every, control), wide)
        return self.b.ashr(pairs, self.const(8, wide)) if signed else pairs

    def byte_shuffle(self, a: Value, control: Sequence[int]) -> Value:
        """Within every 16 bytes of a, the byte that control names, or zero where it is negative. AVX2 and up."""
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[a.type.count]
        return self.call(f"llvm.x86.{name}", a.type, [a, self.table(a.type, control)])

    def lane(self, a: Value, index: int) -> Value:
        return self.b.extract_element(a, self.const(index, I32))

    # -- memory ---------------------------------------------------------------------------------------------------------

    def offset(self, address: Value, by: Value | int) -> Value:
        if isinstance(by, int):
            return self.b.add(address, self.const(by)) if by else address
        return self.b.add(address, by)

    def at(self, address: Value, index: Value, stride: Value | int) -> Value:
        """address + index * stride."""
        step = self.const(stride) if isinstance(stride, int) else stride
        return self.b.add(address, self.b.mul(index, step))

    def load(self, address: Value, type_: ir.Type, by: Value | int = 0) -> Value:
        return self.b.load(self.b.inttoptr(self.offset(address, by), type_.as_pointer()), align=1)

    def store(self, value: Value, address: Value, by: Value | int = 0) -> None:
        self.b.store(value, self.b.inttoptr(self.offset(address, by), value.type.as_pointer()), align=1)

    def prefetch(self, address: Value, by: Value | int = 0) -> None:
        """Ask for the cache line at an address, which may be anything, before it is needed: into the second-level cache."""
        pointer = self.b.inttoptr(self.offset(address, by), I8.as_pointer())
        self.call("llvm.prefetch.p0", ir.VoidType(), [pointer, self.const(0, I32), self.const(2, I32), self.const(1, I32)])

    def element(self, n_bytes: int) -> ir.Type:
        """The integer type of n_bytes bytes, for moving bits."""
        return ir.IntType(8 * n_bytes)

    # -- control --------------------------------------------------------------------------------------------------------

    def loop(
        self, start: Value, stop: Value, body: Callable[[Value, list[Value]], Sequence[Value]], carried: Sequence[Value] = (), step: int = 1
    ) -> list[Value]:
        """for i in range(start, stop, step): carried = body(i, carried). Returns what was carried at the end."""
        b = self.b
        before = b.block
        head, done = b.append_basic_block("loop"), b.append_basic_block("done")
        b.cbranch(b.icmp_signed("<", start, stop), head, done)
        b.position_at_end(head)
        index = b.phi(start.type)
        state = [b.phi(value.type) for value in carried]
        after = list(body(index, list(state)))
        following = b.add(index, self.const(step, start.type))
        last = b.block
        for phi, first, value in zip([index, *state], [start, *carried], [following, *after]):
            phi.add_incoming(first, before)
            phi.add_incoming(value, last)
        b.cbranch(b.icmp_signed("<", following, stop), head, done)
        b.position_at_end(done)
        return [self.merge([(first, before), (value, last)]) for first, value in zip(carried, after)]

    def merge(self, incoming: Sequence[tuple[Value, ir.Block]]) -> Value:
        phi = self.b.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def range(self, start: Value, stop: Value, body: Callable[[Value], None], step: int = 1) -> None:
        """for i in range(start, stop, step): body(i)."""

        def once(index: Value, _: list[Value]) -> Sequence[Value]:
            body(index)
            return ()

        self.loop(start, stop, once, (), step)

    def count(self, n: Value | int, body: Callable[[Value], None]) -> None:
        """for i in range(n): body(i)."""
        self.range(self.const(0), self.const(n) if isinstance(n, int) else n, body)

    def minimum(self, a: Value, b: Value) -> Value:
        """Of two signed integers."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    # -- arithmetic -----------------------------------------------------------------------------------------------------

    def call(self, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
        """A call of an LLVM intrinsic."""
        module = self.b.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [value.type for value in arguments]), name)
        return self.b.call(function, arguments)

    def overloaded(self, name: str, arguments: Sequence[Value]) -> Value:
        """A call of an intrinsic over vectors or scalars of one type, e.g. "fma" -> llvm.fma.v16f32."""
        type_ = arguments[0].type
        element = getattr(type_, "element", type_)
        letter = f"i{element.width}" if isinstance(element, ir.IntType) else {F16: "f16", F32: "f32"}[element]
        suffix = f"v{type_.count}{letter}" if isinstance(type_, ir.VectorType) else letter
        return self.call(f"llvm.{name}.{suffix}", type_, arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c: fused where the target can, two roundings where it cannot. One choice per target, so results are stable."""
        return self.overloaded("fma", [a, b, c]) if self.target.fma else self.b.fadd(self.b.fmul(a, b), c)

    def to_float(self, a: Value) -> Value:
        """Signed 32-bit integers to float32."""
        return self.b.sitofp(a, vec(F32, a.type.count) if isinstance(a.type, ir.VectorType) else F32)

    def times_power(self, a: Value, n: Value) -> Value:
        """a * 2**n of float32 (scalar or vector), rounded once; a is in 0.5..2, n a whole number in -150..129, also as float32."""
        b, type_ = self.b, a.type
        if "avx512f" in self.target.features and type_ == vec(F32, 16):
            every, current = ir.Constant(I16, -1), self.const(4, I32)  # all lanes; the rounding that is set
            return self.call("llvm.x86.avx512.mask.scalef.ps.512", type_, [a, n, a, every, current])
        whole = vec(I32, type_.count) if isinstance(type_, ir.VectorType) else I32
        round_, bits = 1.5 * 2.0**23, 0x4B400000  # adding it leaves a whole number in the low bits of the significand
        exponent = b.sub(self.cast(b.fadd(n, self.const(round_, type_)), whole), self.const(bits, whole))
        half = b.ashr(exponent, self.const(1, whole))  # in two steps, because 2**n itself may leave float32 where the result does not
        for part in (half, b.sub(exponent, half)):
            a = b.fmul(a, self.cast(b.shl(b.add(part, self.const(127, whole)), self.const(23, whole)), type_))
        return a

    def widen_half(self, bits: Value) -> Value:
        """float16 bits (i16, scalar or vector) to float32, exactly; NaNs come out quiet."""
        b = self.b
        vector = isinstance(bits.type, ir.VectorType)
        shape = (lambda type_: vec(type_, bits.type.count)) if vector else (lambda type_: type_)
        if self.target.f16c:
            return b.fpext(self.cast(bits, shape(F16)), shape(F32))
        wide, c = b.zext(bits, shape(I32)), lambda value: self.const(value, shape(I32))
        sign = b.shl(b.and_(wide, c(0x8000)), c(16))
        magnitude = b.shl(b.and_(wide, c(0x7FFF)), c(13))
        # The exponent counts from 2**-15 instead of 2**-127: a multiplication by 2**112 corrects it, denormals included.
        finite = self.cast(b.fmul(self.cast(magnitude, shape(F32)), self.const(2.0**112, shape(F32))), shape(I32))
        quiet = b.select(b.icmp_unsigned(">", magnitude, c(0x7C00 << 13)), c(0x7FC00000), c(0x7F800000))
        special = b.icmp_unsigned(">=", magnitude, c(0x7C00 << 13))
        return self.cast(b.or_(sign, b.select(special, b.or_(magnitude, quiet), finite)), shape(F32))

    def widen_bfloat(self, bits: Value) -> Value:
        """bfloat16 bits (vector of i16) to float32."""
        wide = vec(I32, bits.type.count)
        return self.cast(self.b.shl(self.b.zext(bits, wide), self.const(16, wide)), vec(F32, bits.type.count))

    def sum_of(self, values: Sequence[Value]) -> Value:
        """Integer vectors added as a tree, which is short rather than long for the processor to wait for."""
        while len(values) > 1:
            values = [self.b.add(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
        return values[0]

    def halved(self, a: Value, lanes: int) -> Value:
        """Integer lanes added by halving until `lanes` are left."""
        while a.type.count > lanes:
            half = a.type.count // 2
            a = self.b.add(self.part(a, 0, half), self.part(a, half, half))
        return a

    def sum(self, a: Value) -> Value:
        """All lanes added by halving: ((0+4)+(2+6))+((1+5)+(3+7)) for eight lanes."""
        add = self.b.fadd if a.type.element == F32 else self.b.add
        while a.type.count > 1:
            half = a.type.count // 2
            a = add(self.part(a, 0, half), self.part(a, half, half))
        return self.lane(a, 0)

    # -- integer dot products -------------------------------------------------------------------------------------------

    def pair_dot(self, w: Value, x: Value, signed: bool) -> Value:
        """w[2i] * x[2i] + w[2i+1] * x[2i+1] in 16 bits: <n x i8> twice -> <n/2 x i16>.

        x is in -127..127. w is unsigned and at most 127, or `signed` and any byte: neither sum leaves 16 bits.
        """
        n = w.type.count
        name = self._PAIR_DOTS.get(n)
        if self.target.avx2 and name:
            if signed:
                w, x = self.magnitude(w), self._with_sign(x, w)
            return self.call(name, vec(I16, n // 2), [w, x])
        (w_low, w_high), (x_low, x_high) = self._halves(w, I16, signed), self._halves(x, I16, True)
        return self.b.add(self.b.mul(w_low, x_low), self.b.mul(w_high, x_high))

    def _halves(self, a: Value, element: ir.IntType, signed: bool) -> tuple[Value, Value]:
        """Even and odd lanes of a, each widened to `element`, twice as wide: shifts within lanes, which every processor has."""
        pairs = self.cast(a, vec(element, a.type.count // 2))
        half = self.const(element.width // 2, pairs.type)
        shift = self.b.ashr if signed else self.b.lshr
        return shift(self.b.shl(pairs, half), half), shift(pairs, half)

    _PAIR_DOTS: ClassVar = {
        16: "llvm.x86.ssse3.pmadd.ub.sw.128",
        32: "llvm.x86.avx2.pmadd.ub.sw",
        64: "llvm.x86.avx512.pmaddubs.w.512",
    }

    def _with_sign(self, x: Value, w: Value) -> Value:
        """x, negated where w is negative (and anything where w is zero)."""
        names = {16: "llvm.x86.ssse3.psign.b.128", 32: "llvm.x86.avx2.psign.b"}
        if name := names.get(x.type.count):
            return self.call(name, x.type, [x, w])
        return self.b.select(self.b.icmp_signed("<", w, self.zero(w.type)), self.b.neg(x), x)

    def magnitude(self, a: Value) -> Value:
        """|a| lane by lane; the most negative byte becomes 128 unsigned."""
        type_ = a.type
        return self.call(f"llvm.abs.v{type_.count}i{type_.element.width}", type_, [a, ir.Constant(I1, 0)])

    def madd(self, a: Value, b: Value) -> Value:
        """a[2i] * b[2i] + a[2i+1] * b[2i+1] in 32 bits: <n x i16> twice -> <n/2 x i32>."""
        n = a.type.count
        name = self._MADDS.get(n)
        if self.target.avx2 and name:
            return self.call(name, vec(I32, n // 2), [a, b])
        (a_low, a_high), (b_low, b_high) = (self._halves(v, I32, True) for v in (a, b))
        return self.b.add(self.b.mul(a_low, b_low), self.b.mul(a_high, b_high))

    _MADDS: ClassVar = {8: "llvm.x86.sse2.pmadd.wd", 16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"}

    def dot4(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """total + the sum of four products of bytes per lane, on whole vectors. VNNI only."""
        return self.call(f"llvm.x86.avx512.vpdpbusd.{8 * signed.type.count}", total.type, [total, unsigned, signed])

    def dot2(self, total: Value, a: Value, b: Value) -> Value:
        """total + madd(a, b)."""
        if self.target.vnni and a.type.count == 2 * self.target.lanes:
            return self.call(f"llvm.x86.avx512.vpdpwssd.{16 * a.type.count}", total.type, [total, a, b])
        return self.b.add(total, self.madd(a, b))

    def fold(self, a: Value, b: Value) -> Value:
        """Neighbours added: in every four lanes a0 + a1, a2 + a3, b0 + b1, b2 + b3."""
        n = a.type.count
        even, odd = ([q + p for q in range(0, n, 4) for p in (first, first + 2, n + first, n + first + 2)] for first in (0, 1))
        return self.b.add(self.shuffle(a, even, b), self.shuffle(a, odd, b))

    # -- transposition -----------------------------------------------------------------------------------------------------

    def transpose4(self, rows: Sequence[Value]) -> list[Value]:
        """L rows of <4 x i32> -> four columns of <L x i32>, L = 4, 8 or 16."""
        quarters = len(rows) // 4
        joined = []
        for i in range(4):
            parts = list(rows[i::4])  # a quarter holds rows 4q .. 4q + 3 when transposed within quarters
            while len(parts) > 1:
                parts = [self.concat(*parts[j : j + 2]) for j in range(0, len(parts), 2)]
            joined += parts
        n = 4 * quarters

        def interleave(a: Value, b: Value, picks: Sequence[int]) -> Value:
            """picks: 0..3 from a's quarter, 4..7 from b's."""
            return self.shuffle(a, [q + p if p < 4 else n + q + p - 4 for q in range(0, n, 4) for p in picks], b)

        low, high, pairs, halves = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
        a, c = interleave(joined[0], joined[1], low), interleave(joined[2], joined[3], low)
        b, d = interleave(joined[0], joined[1], high), interleave(joined[2], joined[3], high)
        return [interleave(a, c, pairs), interleave(a, c, halves), interleave(b, d, pairs), interleave(b, d, halves)]
