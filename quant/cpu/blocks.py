"""The block formats as kernels see them: one table of where quants and scales lie, and the code that reads them.

Every format's quants are bit planes (`quant.bits`): a low plane and perhaps a higher one, so that one generic function reads 32
neighbouring elements of any format; sub-block scales of the 256-element formats come in five packings (`scales`).
The arithmetic of a block is

    super-blocks (256 elements)   x = d * scale[j] * (q - offset) - dmin * minimum[j]     integer scales, float16 d and dmin
    blocks (32 elements)          x = d * (q - offset) + m                                float16 d and m

Knows the bytes of a block and nothing of rows, tokens or tiles. The definition is `quant.reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from quant.cpu import scales
from quant.iq import LEVELS
from quant.simd import I1, I8, I32, Emitter, Value, vec


@dataclass(frozen=True, slots=True)
class Plane:
    """A bit field of `bits` bits lying in planes of `width` bytes from byte `at` of the block."""

    at: int
    width: int
    bits: int


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How a kernel reads one format.

    `planes` from low bits to high. `signed`: the quants are signed bytes (the others are unsigned, up to `top`, and mean
    q - offset). `levels`: they are indices into `quant.iq.LEVELS`. `scales` with `n_sub` sub-blocks: a super-block format.
    `d_at`, `m_at`: bytes of the float16 scale and minimum; m_at is None where there is none.
    """

    name: str
    n_bytes: int
    planes: tuple[Plane, ...]
    d_at: int
    m_at: int | None = None
    offset: int = 0
    signed: bool = False
    levels: bool = False
    n_sub: int = 0
    scales: scales.Scales | None = None

    @property
    def n_elements(self) -> int:
        return 256 if self.scales else 32

    @property
    def top(self) -> int:
        """The largest magnitude of a quant."""
        return 128 if self.signed else (1 << sum(plane.bits for plane in self.planes)) - 1


Unit = tuple[Value, int]
"""(block address, segment): elements 32 * segment .. + 31 of a block."""


def quants(e: Emitter, fmt: BlockFormat, units: Sequence[Unit]) -> Value:
    """The quants of one unit, or of several side by side, in order: <32 * units x i8>."""
    joined, at = None, 0
    for plane in fmt.planes:
        field = (_bits if plane.width == 1 else _field)(e, plane, units)
        if joined is None:
            joined = field
        else:
            words = vec(I32, field.type.count // 4)  # no bit leaves its byte, so wider lanes shift bytes as well
            joined = e.b.or_(joined, e.cast(e.b.shl(e.cast(field, words), e.const(at, words)), field.type))
        at += plane.bits
    return level(e, joined) if fmt.levels else joined


def _field(e: Emitter, plane: Plane, units: Sequence[Unit]) -> Value:
    """One plane's bits of every element: bytes loaded, spread to where they are needed, shifted and masked."""
    loads: list[tuple[Value, int]] = []
    picks: list[int] = []
    shifts: list[int] = []  # one for four elements
    n = min(32, plane.width)
    for block, segment in units:
        group, within = divmod(32 * segment, plane.width * 8 // plane.bits)
        first_plane, first = divmod(within, plane.width)
        source = (block, plane.at + group * plane.width + first)
        if source not in loads:
            loads.append(source)
        base = n * loads.index(source)
        for index in range(first_plane, first_plane + 32 // n):
            picks += range(base, base + n)
            shifts += [index * plane.bits] * (n // 4)
    packed = _load_side_by_side(e, loads, n)
    if picks != list(range(packed.type.count)):
        packed = e.shuffle(packed, picks)
    if plane.bits == 8:
        return packed
    if any(shifts):
        words = e.cast(packed, vec(I32, len(shifts)))
        packed = e.cast(e.b.lshr(words, e.table(words.type, shifts)), packed.type)
    return e.b.and_(packed, e.const((1 << plane.bits) - 1, packed.type))


def _load_side_by_side(e: Emitter, loads: Sequence[tuple[Value, int]], n: int) -> Value:
    """n bytes from each of one or two (address, offset) as one vector."""
    (block, at), *more = loads
    if not more:
        return e.load(block, vec(I8, n), at)
    ((other, other_at),) = more
    if other is block and other_at == at + n:
        return e.load(block, vec(I8, 2 * n), at)
    return e.concat(e.load(block, vec(I8, n), at), e.load(other, vec(I8, n), other_at))


def _bits(e: Emitter, plane: Plane, units: Sequence[Unit]) -> Value:
    """One bit of every element, from plain little-endian bits."""
    parts = [e.b.zext(e.cast(e.load(block, I32, plane.at + 4 * segment), vec(I1, 32)), vec(I8, 32)) for block, segment in units]
    return parts[0] if len(parts) == 1 else e.concat(*parts)


def level(e: Emitter, index: Value) -> Value:
    """LEVELS[index] of each byte below 16."""
    levels, n = [int(level) for level in LEVELS], index.type.count
    if e.target.avx2:
        name = "avx512.pshuf.b.512" if n == 64 else "avx2.pshuf.b"
        return e.call(f"llvm.x86.{name}", index.type, [e.table(index.type, levels * (n // 16)), index])
    value = e.const(levels[0], index.type)
    for position in range(1, 16):
        reached = e.b.icmp_unsigned(">=", index, e.const(position, index.type))
        step = e.const((levels[position] - levels[position - 1]), index.type)
        value = e.b.add(value, e.b.select(reached, step, e.zero(index.type)))
    return value


BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {
        fmt.name: fmt
        for fmt in (
            BlockFormat("Q4_0", 18, (Plane(2, 16, 4),), d_at=0, offset=8),
            BlockFormat("Q4_1", 20, (Plane(4, 16, 4),), d_at=0, m_at=2),
            BlockFormat("Q5_0", 22, (Plane(6, 16, 4), Plane(2, 1, 1)), d_at=0, offset=16),
            BlockFormat("Q5_1", 24, (Plane(8, 16, 4), Plane(4, 1, 1)), d_at=0, m_at=2),
            BlockFormat("Q8_0", 34, (Plane(2, 32, 8),), d_at=0, signed=True),
            BlockFormat("IQ4_NL", 18, (Plane(2, 16, 4),), d_at=0, signed=True, levels=True),
            BlockFormat("Q2_K", 84, (Plane(16, 32, 2),), d_at=80, m_at=82, n_sub=16, scales=scales.Q2_K),
            BlockFormat("Q3_K", 110, (Plane(32, 32, 2), Plane(0, 32, 1)), d_at=108, offset=4, n_sub=16, scales=scales.Q3_K),
            BlockFormat("Q4_K", 144, (Plane(16, 32, 4),), d_at=0, m_at=2, n_sub=8, scales=scales.Q4_K),
            BlockFormat("Q5_K", 176, (Plane(48, 32, 4), Plane(16, 32, 1)), d_at=0, m_at=2, n_sub=8, scales=scales.Q4_K),
            BlockFormat("Q6_K", 210, (Plane(0, 64, 4), Plane(128, 32, 2)), d_at=208, offset=32, n_sub=16, scales=scales.Q6_K),
            BlockFormat("IQ4_XS", 136, (Plane(8, 16, 4),), d_at=0, signed=True, levels=True, n_sub=8, scales=scales.IQ4_XS),
        )
    }
)
"""Every format that is multiplied through integers, by name."""
