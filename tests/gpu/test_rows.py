"""Row kernels on the emulated GPU against float64 models of the reference's ops.

Bounds: sums of n float32 terms in trees of 32 lanes err by a few units in the last place (2^-24 = 6e-8): 1e-6 of the largest value; exp and
division add as little. Copies are exact. A q8 quant is within half a step, and by rounding of the value itself at most one off.
"""

import numpy as np
import pytest

from ggrun.program.params import Rope, RopeScaling
from ggrun.program.rope import frequencies
from ggrun.runtime.cuda import rows
from tests.gpu.emulation.kernels import ORDERS, Emulator, guarded, poisoned
from tests.gpu.frames import Frame, error

FLOAT = 1e-6


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    made = Emulator(90)
    made.prepare(["norm__4__1", "norm__4__2", "norm__4__4", "norm__1__16", "glu__4", "glu__1", "take_rows__4", "take_rows__1", "add"])
    made.prepare(["expert_sum__4", "expert_sum__1", "rms_norm_groups", "rope", "rope_table", *(f"route__{n}" for n in (1, 2, 4, 8, 16))])
    return made


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return guarded((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def q8_rows(n_rows: int, n: int) -> Frame:
    return Frame((n_rows, (n + n // 8 + n // 4 + 15) // 16 * 16), np.uint8)


def check_q8(q8: np.ndarray, x: np.ndarray) -> None:
    """q8 rows against the float32 rows they stand for."""
    n_rows, n = x.shape
    quants = q8[:, :n].view(np.int8).astype(np.float64)
    d = q8[:, n : n + n // 8].copy().view(np.float32).astype(np.float64)
    s = q8[:, n + n // 8 : n + n // 8 + n // 4].copy().view(np.float32)
    blocks = x.reshape(n_rows, n // 32, 32).astype(np.float64)
    assert np.allclose(d, np.abs(blocks).max(-1) / 127, rtol=1e-6, atol=0)
    assert np.abs(quants).max(initial=0) <= 127
    off = np.abs(quants.reshape(blocks.shape) * d[..., None] - blocks)
    assert (off <= 0.5001 * d[..., None]).all()
    assert np.allclose(s, np.repeat(d, 2, -1) * quants.reshape(n_rows, n // 16, 16).sum(-1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n", [32, 63, 250, 1024, 2050, 4096, 5120, 8192, 16384])
@pytest.mark.parametrize("added", [False, True])
def test_norm(emulator: Emulator, n: int, added: bool) -> None:
    n_rows, eps = 3, 1e-5
    x, other, w = random(1, n_rows, n, scale=3.0), random(2, n_rows, n), random(3, n)
    total, y = Frame((n_rows, n)), Frame((n_rows, n))
    q8 = q8_rows(n_rows, n) if n % 32 == 0 else None
    launch = rows.norm(
        x.ctypes.data, other.ctypes.data if added else 0, total.address if added else 0, w.ctypes.data, y.address,
        q8.address if q8 else 0, n, eps, n_rows,
    )  # fmt: skip
    emulator.run(launch, order=7)
    right_total = x + other if added else x
    right = right_total.astype(np.float64)
    right = right / np.sqrt((right * right).mean(-1, keepdims=True) + eps) * w
    assert error(y.array, right) < FLOAT
    assert y.whole()
    assert total.whole()
    if added:
        assert np.array_equal(total.array, right_total)
    if q8:
        check_q8(q8.array, y.array)
        assert q8.whole()


def test_norm_in_place_and_quantized_alone(emulator: Emulator) -> None:
    n = 96
    x, add, w = random(1, 2, n), random(2, 2, n), random(3, n)
    sums, q8, y = x + add, q8_rows(2, n), Frame((2, n))
    emulator.run(rows.norm(x.ctypes.data, add.ctypes.data, x.ctypes.data, w.ctypes.data, 0, q8.address, n, 1e-6, 2))
    assert np.array_equal(x, sums)
    emulator.run(rows.norm(x.ctypes.data, 0, 0, w.ctypes.data, y.address, 0, n, 1e-6, 2))
    check_q8(q8.array, y.array)


def test_norm_of_zeros_and_of_large_values(emulator: Emulator) -> None:
    n = 64
    x, w = guarded(np.zeros((2, n), np.float32)), guarded(np.ones(n, np.float32))
    x[1] = 1e18
    y, q8 = Frame((2, n)), q8_rows(2, n)
    emulator.run(rows.norm(x.ctypes.data, 0, 0, w.ctypes.data, y.address, q8.address, n, 1e-6, 2))
    assert not y.array[0].any()
    assert np.allclose(y.array[1], 1)
    check_q8(q8.array, y.array)


def test_rows_too_wide_or_odd_are_refused() -> None:
    with pytest.raises(ValueError, match="16388"):
        rows.norm(0, 0, 0, 0, 0, 0, 16388, 1e-5, 1)
    with pytest.raises(ValueError, match="no multiple of 32"):
        rows.glu(0, 0, 0, 64, 48, 1)


@pytest.mark.parametrize(("groups", "width"), [(1, 64), (8, 128), (5, 80), (3, 17), (7, 256)])
def test_rms_norm_groups(emulator: Emulator, groups: int, width: int) -> None:
    x, w, y = random(4, 3, groups * width), random(5, width), Frame((3, groups * width))
    parts = x.reshape(3, groups, width).astype(np.float64)
    right = (parts / np.sqrt((parts * parts).mean(-1, keepdims=True) + 1e-6) * w).reshape(x.shape)
    emulator.run(rows.rms_norm_groups(x.ctypes.data, w.ctypes.data, y.address, groups * width, groups, 1e-6, 3), order=1)
    assert error(y.array, right) < FLOAT
    assert y.whole()
    emulator.run(rows.rms_norm_groups(x.ctypes.data, w.ctypes.data, x.ctypes.data, groups * width, groups, 1e-6, 3))
    assert np.array_equal(x, y.array)


@pytest.mark.parametrize("n", [1, 3, 4, 1021, 4096])
def test_add(emulator: Emulator, n: int) -> None:
    a, b, y = random(6, n), random(7, n), Frame(n)
    emulator.run(rows.add(a.ctypes.data, b.ctypes.data, y.address, n))
    assert np.array_equal(y.array, a + b)
    assert y.whole()


@pytest.mark.parametrize("n", [17, 32, 1056, 2816])
def test_glu(emulator: Emulator, n: int) -> None:
    gate, up, y = random(8, 3, n, scale=20.0), random(9, 3, n), Frame((3, n))
    gate[0, :4] = (200, -200, 0, -90)
    q8 = q8_rows(3, n) if n % 32 == 0 else None
    emulator.run(rows.glu(gate.ctypes.data, up.ctypes.data, y.address, q8.address if q8 else 0, n, 3), order=7)
    g = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        assert error(y.array, g / (1 + np.exp(-g)) * up) < FLOAT
    assert y.whole()
    if q8:
        check_q8(q8.array, y.array)
        assert q8.whole()
        alone = q8_rows(3, n)
        emulator.run(rows.glu(gate.ctypes.data, up.ctypes.data, 0, alone.address, n, 3))
        assert np.array_equal(alone.array[:, : n + n // 8 + n // 4], q8.array[:, : n + n // 8 + n // 4])


@pytest.mark.parametrize("n", [5, 64, 1300])
def test_take_rows(emulator: Emulator, n: int) -> None:
    x, ids, y = random(10, 7, n), guarded(np.array([6, 0, 0, 3], np.int32)), Frame((4, n))
    emulator.run(rows.take_rows(x.ctypes.data, ids.ctypes.data, y.address, n, 4))
    assert np.array_equal(y.array, x[ids])
    assert y.whole()


@pytest.mark.parametrize("n", [7, 64, 1100])
def test_expert_sum(emulator: Emulator, n: int) -> None:
    x, w, y = random(11, 3, 4 * n), random(12, 3, 4), Frame((3, n))
    emulator.run(rows.expert_sum(x.ctypes.data, w.ctypes.data, y.address, n, 4, 3))
    assert error(y.array, np.einsum("tsn,ts->tn", x.reshape(3, 4, n).astype(np.float64), w)) < FLOAT
    assert y.whole()


ROPES = [
    Rope(3, 64, 64, "norm", 10000.0),
    Rope(2, 80, 32, "neox", 500000.0),
    Rope(5, 128, 128, "neox", 1e6, RopeScaling("yarn", 4.0, 4096)),
    Rope(1, 16, 10, "norm", 10000.0),
]


@pytest.mark.parametrize("params", ROPES, ids=lambda r: f"{r.style}-{r.n_rot}")
@pytest.mark.parametrize("order", ORDERS)
def test_rope(emulator: Emulator, params: Rope, order: int) -> None:
    """Angles are exact at any position: table entries within two units in the last place of float64's."""
    freq, magnitude = frequencies(params)
    positions = guarded(np.array([0, 1, 31, 4097, 131071, 1 << 20], np.int32))
    n, half = len(positions), params.n_rot // 2
    table, angle = Frame((n, half, 2)), positions[:, None] * freq
    device_freq = guarded(freq)
    emulator.run(rows.rope_table(positions.ctypes.data, device_freq.ctypes.data, table.address, half, magnitude, n), order)
    cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    assert np.abs(table.array - np.stack([cos, sin], -1)).max() < 2.5e-7 * magnitude
    assert table.whole()
    x = random(13, n, params.n_heads * params.head_dim)
    y = Frame(x.shape)
    arguments = (params.n_heads, params.head_dim, params.n_rot, params.style == "neox", n)
    emulator.run(rows.rope(x.ctypes.data, table.address, y.address, *arguments), order)
    right = x.reshape(n, params.n_heads, params.head_dim).astype(np.float64)
    a, b = (slice(0, params.n_rot, 2), slice(1, params.n_rot, 2))
    if params.style == "neox":
        a, b = slice(0, half), slice(half, params.n_rot)
    first, second = right[..., a].copy(), right[..., b].copy()
    right[..., a], right[..., b] = first * cos[:, None] - second * sin[:, None], first * sin[:, None] + second * cos[:, None]
    assert error(y.array, right.reshape(x.shape)) < FLOAT
    assert y.whole()
    emulator.run(rows.rope(x.ctypes.data, table.address, x.ctypes.data, *arguments), order)
    assert np.array_equal(x, y.array)


@pytest.mark.parametrize(("n_expert", "n_used"), [(8, 2), (32, 8), (60, 4), (128, 8), (200, 1), (512, 32)])
@pytest.mark.parametrize("normalize", [False, True])
def test_route(emulator: Emulator, n_expert: int, n_used: int, normalize: bool) -> None:
    n = 5
    logits = random(14, n, n_expert, scale=3.0)
    logits[1] = 0.25  # all equal: ids in order
    logits[2, :: max(1, n_expert // 4)] = 9.0
    logits[3, 1:] = -300.0  # probabilities that vanish are equal
    ids, weights = Frame((n, n_used), np.int32), Frame((n, n_used))
    emulator.run(rows.route(logits.ctypes.data, ids.address, weights.address, n_expert, n_used, normalize, 2.5, n), order=1234567)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
    right = np.argsort(-p, -1, kind="stable")[:, :n_used]
    assert np.array_equal(ids.array, right)
    expected = np.take_along_axis(p.astype(np.float64), right, -1)
    if normalize:
        expected = expected / expected.sum(-1, keepdims=True)
    assert error(weights.array, expected * 2.5) < 2 * FLOAT
    assert ids.whole()
    assert weights.whole()


def test_route_keeps_ids_inside_whatever_the_logits(emulator: Emulator) -> None:
    logits = guarded(np.full((2, 40), np.nan, np.float32))
    ids, weights = poisoned((2, 4), np.int32), poisoned((2, 4))
    emulator.run(rows.route(logits.ctypes.data, ids.ctypes.data, weights.ctypes.data, 40, 4, True, 1.0, 2))
    assert ((ids >= 0) & (ids < 40)).all()


def test_kernels_of_a_model() -> None:
    names = rows.kernels([2048, 8192, 50], 60)
    assert {"norm__4__1", "norm__4__2", "norm__1__16", "glu__4", "glu__1", "route__2", "rope"} <= names
    assert not any(name.startswith("route") for name in rows.kernels([64]))
