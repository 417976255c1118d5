"""Attention kernels on the emulated GPU against float64 attention over what the cache gives back.

Bounds, relative to the largest output:
- the float32 path, and decode with up to 4 query heads a KV head over f16 values (queries and weights in two halves): 1e-5, float32's
  rounding over a few thousand terms and scores of some tens;
- else weights are halves (2^-11 each, averaged), prompts' queries too, and quantized values are widened to halves: 1e-3.
What is stored must equal quant.reference.quantize's bytes.
"""

from dataclasses import replace

import numpy as np
import pytest

from ggrun.program.params import Attention, Rope
from ggrun.program.rope import frequencies
from ggrun.runtime.cuda import attention, rows
from ggrun.runtime.cuda.launch import Arch
from tests.gpu.emulation.kernels import ORDERS, Emulator, guarded, poisoned
from tests.gpu.frames import Frame, error
from tests.gpu.paged import Paged

FLOAT, HALF = 1e-5, 1e-3
SMALL, LARGE, OLD = Arch(90, 1, 49152), Arch(90, 132, 49152), Arch(61, 20, 49152)


def params(n_head: int, n_head_kv: int, dim_k: int, dim_v: int = 0, window: int = 0, softcap: float = 0.0) -> Attention:
    return Attention("kv", n_head, n_head_kv, dim_k, dim_v or dim_k, 1.5 / dim_k**0.5, window, softcap)


SHAPES = [
    (params(8, 2, 128), "f16", "f16"),
    (params(3, 3, 64), "f16", "f16"),
    (params(6, 2, 80, 96, window=70), "f16", "f16"),
    (params(8, 1, 256), "f16", "f16"),
    (params(20, 1, 128, 80), "q8_0", "f16"),
    (params(8, 1, 128, softcap=5.0), "q8_0", "q8_0"),
    (params(4, 1, 64, window=33), "q4_0", "q4_0"),
]
MORE = [
    (params(5, 1, 16, 48, softcap=2.0), "f16", "f16"),
    (params(16, 1, 128), "f16", "f16"),
    (params(2, 1, 96), "q8_0", "q4_0"),
    (params(16, 1, 256, 64), "q4_0", "q8_0"),
    (params(8, 2, 32, 160, softcap=5.0), "f16", "q4_0"),
    (params(70, 1, 192, 128), "q8_0", "q8_0"),
    (params(4, 2, 112, 240, window=5), "f16", "f16"),
    (params(1, 1, 256), "q4_0", "q4_0"),
]
EACH = [
    pytest.param(
        *shape,
        marks=pytest.mark.slow if shape in MORE else (),
        id="{0.n_head}/{0.n_head_kv}-{0.head_dim_k}-{0.head_dim_v}-{1}-{2}".format(*shape),
    )
    for shape in SHAPES + MORE
]


@pytest.fixture(scope="module")
def emulators() -> dict[int, Emulator]:
    made = {cc: Emulator(cc) for cc in (90, 61)}
    for cc, emulator in made.items():
        emulator.prepare({name for a, k, v in SHAPES for name in attention.kernels(a, k, v, Arch(cc, 20, 49152))})
    return made


def bound(a: Attention, type_v: str, arch: Arch, decode: bool) -> float:
    exact = arch.cc < 75 or (decode and a.n_head // a.n_head_kv <= 4 and type_v == "f16")
    return FLOAT if exact else HALF


def at(*arrays: np.ndarray) -> tuple[int, ...]:
    """Their addresses."""
    return tuple(array.ctypes.data for array in arrays)


def attend(
    emulator: Emulator,
    paged: Paged,
    q: np.ndarray,
    seqs: np.ndarray,
    positions: np.ndarray,
    arch: Arch,
    tiles: np.ndarray | None,
    order: int = 0,
) -> np.ndarray:
    """Attention of q [tokens][n_head][dim_k]: of tiles, or (None) of single tokens."""
    a, n = paged.params, len(q)
    q, seqs, positions = guarded(q), guarded(seqs.astype(np.int32)), guarded(positions.astype(np.int32))
    y = Frame((n, a.n_head, a.head_dim_v))
    work = poisoned(max(16, attention.work_bytes(a, n, arch)), np.uint8)
    listed = guarded((np.zeros((1, 2)) if tiles is None else tiles).astype(np.int32))
    where = (*at(q, y.array, paged.memory, positions, seqs, paged.tables), paged.tables_stride, *at(listed), len(listed), *at(work))
    kinds = (a, paged.type_k, paged.type_v, paged.block_bytes)
    emulator.run(attention.attention(*where, *kinds, n, tiles is None, arch), order)
    assert y.whole()
    return y.array


def queries(a: Attention, n: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, a.n_head, a.head_dim_k)).astype(np.float32)


@pytest.mark.parametrize(("a", "type_k", "type_v"), EACH)
@pytest.mark.parametrize("arch", [SMALL, LARGE, OLD], ids=["one-split", "splits", "float"])
def test_decode(emulators: dict[int, Emulator], a: Attention, type_k: str, type_v: str, arch: Arch) -> None:
    """One token each of sequences whose lengths meet the blocks' edges, and a padding token in between."""
    lengths = [1, 32, 33, 64, 290]
    paged = Paged(a, type_k, type_v, lengths)
    seqs = np.array([4, 0, 1, 5, 2, 3])
    positions = np.array([289, 0, 31, 0, 32, 63])
    q = queries(a, len(seqs))
    assert (attention.n_splits(a, len(q), arch) > 1) is (arch is LARGE) or arch is OLD
    y = attend(emulators[arch.cc], paged, q, seqs, positions, arch, None, order=7)
    real = seqs < len(lengths)
    assert error(y[real], paged.attend(q, seqs, positions)[real]) < bound(a, type_v, arch, True)


@pytest.mark.parametrize(("a", "type_k", "type_v"), EACH)
@pytest.mark.parametrize("arch", [LARGE, OLD], ids=["mma", "float"])
def test_prompt(emulators: dict[int, Emulator], a: Attention, type_k: str, type_v: str, arch: Arch) -> None:
    """Pieces of three sequences in one batch: from the start, behind a prefix, one token; tokens outside of tiles get nothing."""
    paged = Paged(a, type_k, type_v, [70, 155, 40])
    seqs = np.repeat([0, 1, 3, 2], [70, 33, 2, 1])
    positions = np.concatenate([np.arange(70), np.arange(122, 155), [0, 0], [39]])
    tiles = np.array([[0, 64], [64, 6], [70, 33], [105, 1]])
    q = queries(a, len(seqs))
    y = attend(emulators[arch.cc], paged, q, seqs, positions, arch, tiles, order=7)
    real = seqs < 3
    assert error(y[real], paged.attend(q, seqs, positions)[real]) < bound(a, type_v, arch, False)
    assert (y[~real].view(np.uint8) == 0xCB).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("shape", "tiled", "arch"), [(0, False, LARGE), (5, False, SMALL), (0, True, LARGE), (5, True, SMALL), (6, True, OLD), (6, False, OLD)]
)
def test_thread_order_does_not_show(emulators: dict[int, Emulator], shape: int, tiled: bool, arch: Arch, order: int) -> None:
    a, type_k, type_v = SHAPES[shape]
    paged = Paged(a, type_k, type_v, [200])
    positions = np.arange(180, 200)
    tiles = np.array([[0, 20]]) if tiled else None
    q = queries(a, 20)
    first, other = (attend(emulators[arch.cc], paged, q, positions * 0, positions, arch, tiles, o) for o in (0, order))
    assert np.array_equal(first, other)


@pytest.mark.parametrize("window", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("arch", [LARGE, OLD], ids=["mma", "float"])
def test_window_edges(emulators: dict[int, Emulator], window: int, arch: Arch) -> None:
    """Blocks before the window may be anything: they are full of NaN here."""
    a = replace(SHAPES[0][0], window=window)
    paged = Paged(a, "f16", "f16", [200])
    first = 140
    gone = (first - window + 1) // 32
    paged.memory[paged.tables[0, : max(0, gone)]] = 0xFF
    positions = np.arange(first, 200)
    q = queries(a, len(positions))
    right = paged.attend(q, positions * 0, positions)
    y = attend(emulators[arch.cc], paged, q, positions * 0, positions, arch, np.array([[0, 60]]))
    assert error(y, right) < bound(a, "f16", arch, False)
    y = attend(emulators[arch.cc], paged, q[:7], positions[:7] * 0, positions[:7], arch, None)
    assert error(y, right[:7]) < bound(a, "f16", arch, True)


@pytest.mark.parametrize("arch", [SMALL, LARGE, OLD], ids=["one-split", "splits", "float"])
def test_large_scores(emulators: dict[int, Emulator], arch: Arch) -> None:
    """Scores of some hundreds of either sign: nothing overflows, splits whose weights vanish included."""
    a = replace(SHAPES[0][0], scale=20.0)
    paged = Paged(a, "f16", "f16", [400])
    q, positions = queries(a, 2), np.array([399, 255])
    y = attend(emulators[arch.cc], paged, q, positions * 0, positions, arch, None)
    assert error(y, paged.attend(q, positions * 0, positions)) < 1e-2  # the scores themselves have 23 bits
    y = attend(emulators[arch.cc], paged, -q * 100, positions * 0, positions, arch, np.array([[0, 1], [1, 1]]))
    assert np.isfinite(y).all()


def test_decode_agrees_with_prompt(emulators: dict[int, Emulator]) -> None:
    a = SHAPES[5][0]
    paged = Paged(a, "q8_0", "q8_0", [96])
    positions = np.arange(60, 96)
    q = queries(a, len(positions))
    alone = attend(emulators[90], paged, q, positions * 0, positions, LARGE, None)
    together = attend(emulators[90], paged, q, positions * 0, positions, LARGE, np.array([[0, 36]]))
    assert error(together, alone.astype(np.float64)) < HALF


@pytest.mark.parametrize("arch", [LARGE, OLD], ids=["mma", "float"])
def test_long_context(emulators: dict[int, Emulator], arch: Arch) -> None:
    a = SHAPES[1][0]
    paged = Paged(a, "f16", "f16", [4100])
    positions = np.array([4099, 4095, 4096])
    q = queries(a, 3)
    y = attend(emulators[arch.cc], paged, q, positions * 0, positions, arch, None)
    assert error(y, paged.attend(q, positions * 0, positions)) < bound(a, "f16", arch, True)
    positions = np.arange(4090, 4093)
    y = attend(emulators[arch.cc], paged, q, positions * 0, positions, arch, np.array([[0, 3]]))
    assert error(y, paged.attend(q, positions * 0, positions)) < bound(a, "f16", arch, False)


@pytest.mark.slow
def test_as_many_splits_as_there_can_be(emulators: dict[int, Emulator]) -> None:
    a = params(1, 1, 16)
    assert attention.n_splits(a, 1, LARGE) == 128
    paged = Paged(a, "f16", "f16", [20000])
    for position in (19999, 16384, 4000):
        q, positions = queries(a, 1), np.array([position])
        y = attend(emulators[90], paged, q, positions * 0, positions, LARGE, None)
        assert error(y, paged.attend(q, positions * 0, positions)) < FLOAT


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("order", ORDERS)
def test_kv_store(emulators: dict[int, Emulator], kind: str, order: int) -> None:
    """The bytes of the reference's quantizers, in the right cells and in no other."""
    a = params(4, 2, 96, 160) if kind != "f16" else params(4, 2, 80, 256)
    type_v = "f16" if kind == "q4_0" else kind
    paged = Paged(a, kind, type_v, [40, 64])
    seqs, positions = np.array([0, 1, 1, 0], np.int32), np.array([39, 31, 32, 3], np.int32)
    rng = np.random.default_rng(1)
    k = (rng.standard_normal((4, 2, a.head_dim_k)) * 10.0 ** rng.integers(-6, 3, (4, 2, 1))).astype(np.float32)
    v = rng.standard_normal((4, 2, a.head_dim_v)).astype(np.float32)
    k[0, 0] = 0
    k[0, 1, ::2] = -0.0
    k[1, 0, :32] = rng.choice(np.array([-3.5, 3.5, 1.75], np.float32), 32)  # equal magnitudes, halves
    k[2, 1, 32:64] = 1e-42
    expected = paged.memory.copy()
    for i in range(4):
        paged.put(expected, seqs[i], positions[i : i + 1], k[i : i + 1], v[i : i + 1])
    k, v, seqs, positions = map(guarded, (k, v, seqs, positions))
    where = (*at(k, v, paged.memory, positions, seqs, paged.tables), paged.tables_stride)
    emulators[61].run(attention.kv_store(*where, a, kind, type_v, paged.block_bytes, 4), order)
    assert np.array_equal(paged.memory, expected)


@pytest.mark.parametrize("rope", [Rope(6, 64, 64, "neox", 10000.0), Rope(6, 64, 40, "norm", 10000.0)], ids=["neox", "norm"])
@pytest.mark.parametrize("type_k", ["f16", "q8_0"])
@pytest.mark.parametrize("in_place", [False, True])
def test_rope_store_is_rope_and_kv_store(emulators: dict[int, Emulator], rope: Rope, type_k: str, in_place: bool) -> None:
    a = params(6, 2, 64, 96)
    n, half = 3, rope.n_rot // 2
    one, two = (Paged(a, type_k, "f16", [50, 90]) for _ in range(2))
    seqs, positions = guarded(np.array([1, 0, 1], np.int32)), guarded(np.array([88, 49, 89], np.int32))
    rng = np.random.default_rng(2)
    q, k, v = (guarded(rng.standard_normal((n, heads, dim)).astype(np.float32)) for heads, dim in ((6, 64), (2, 64), (2, 96)))
    freq, magnitude = frequencies(rope)
    device_freq, table = guarded(freq), poisoned((n, half, 2))
    q_one, k_one, q_two = Frame(q.shape), Frame(k.shape), Frame(q.shape)
    where = (*at(positions, seqs, one.tables), one.tables_stride)
    emulator = emulators[90]
    emulator.run(
        [
            rows.rope_table(positions.ctypes.data, device_freq.ctypes.data, table.ctypes.data, half, magnitude, n),
            rows.rope(q.ctypes.data, table.ctypes.data, q_one.address, 6, 64, rope.n_rot, rope.style == "neox", n),
            rows.rope(k.ctypes.data, table.ctypes.data, k_one.address, 2, 64, rope.n_rot, rope.style == "neox", n),
            attention.kv_store(k_one.address, v.ctypes.data, one.memory.ctypes.data, *where, a, type_k, "f16", one.block_bytes, n),
        ]
    )
    tensors = at(q, q if in_place else q_two.array, k, v, table, two.memory)
    emulator.run(attention.rope_store(*tensors, *where, a, rope, type_k, "f16", two.block_bytes, n), order=7)
    assert np.array_equal(q if in_place else q_two.array, q_one.array)
    assert np.array_equal(one.memory, two.memory)
    assert q_two.whole()


def test_what_no_kernel_can() -> None:
    assert not attention.unsupported(SHAPES[2][0], "f16", "f16")
    assert "multiple of 32" in attention.unsupported(SHAPES[2][0], "q8_0", "f16")
    assert "at most 256" in attention.unsupported(params(2, 1, 272), "f16", "f16")
    assert "evenly" in attention.unsupported(params(5, 2, 64), "f16", "f16")


def test_work_area_fits_every_number_of_tokens() -> None:
    for a, _, _ in SHAPES + MORE:
        for arch in (LARGE, SMALL, OLD):
            most = attention.work_bytes(a, 64, arch)
            for n in range(1, 65):
                splits = attention.n_splits(a, n, arch)
                assert splits == 1 or n * a.n_head * splits * (a.head_dim_v + 2) * 4 <= most
