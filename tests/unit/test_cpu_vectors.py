"""The float32 maths of the kernels on every target that runs here: exp to 1e-7, float16 to the bit."""

import functools

import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic

from ggrun.runtime.cpu.vectors import exp, exp1, narrow_half, silu, tanh
from quant.simd import F32, I16, TARGETS, Emitter, tiers, vec

N = 16


@functools.cache
def over(function, tier: str, result):
    """function over float32 arrays, 16 at a time, as a target's code: f(address in, count, address out)."""

    @intrinsic
    def body(typingctx, x, y):
        def codegen(context, builder, signature, args):
            e = Emitter(builder, TARGETS[tier])
            e.store(function(e, e.load(args[0], vec(F32, N))), args[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    size = np.dtype(result).itemsize

    @njit
    def run(x, n, y):
        for i in range(0, n, N):
            body(x + 4 * i, y + size * i)

    def call(x: np.ndarray) -> np.ndarray:
        padded = np.zeros(-(-len(x) // N) * N, np.float32)
        padded[: len(x)] = x
        out = np.zeros(len(padded), result)
        run(padded.ctypes.data, len(padded), out.ctypes.data)
        return out[: len(x)]

    return call


@pytest.fixture(params=tiers())
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


def test_exp(tier: str) -> None:
    x = np.concatenate([np.linspace(-87, 88.7, 200_000), [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    got = over(exp, tier, np.float32)(x)
    assert (np.abs(got - want) / want).max() < 1.5e-7
    assert got[-4] == got[-3] == 1.0


def test_exp_at_the_ends(tier: str) -> None:
    x = np.array([-np.inf, -1e30, -104.0, -100.0, 88.8, 1e30, np.inf, np.nan], np.float32)
    got = over(exp, tier, np.float32)(x)
    assert (got[:3] == 0).all()
    np.testing.assert_allclose(got[3], np.exp(-100.0), atol=1.5e-45)
    assert (got[4:7] == np.inf).all()
    assert np.isnan(got[7])


def test_exp_of_one_is_exp_of_many() -> None:
    x = np.random.default_rng(0).uniform(-110, 95, 4096).astype(np.float32)

    @njit
    def one(x, out):
        for i in range(len(x)):
            out[i] = exp1(x[i])

    out = np.empty_like(x)
    one(x, out)
    np.testing.assert_array_equal(out, over(exp, tiers()[0], np.float32)(x))


def test_silu_and_tanh(tier: str) -> None:
    x = np.linspace(-100, 100, 100_001).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(over(silu, tier, np.float32)(x), wide / (1 + np.exp(-wide)), rtol=3e-7, atol=1e-36)
    np.testing.assert_allclose(over(tanh, tier, np.float32)(x), np.tanh(wide), atol=2e-7)


def test_narrow_half_rounds_as_numpy(tier: str) -> None:
    """All float16 numbers, the midpoints between them, their neighbours, and random bits."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2
    ends = np.array([65504.0, 65519.99, 65520.0, 65536.0, 1e30], np.float32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([halves, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), ends, -ends, random])
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(np.float16)
    got = over(narrow_half, tier, np.uint16)(x).view(np.float16)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number].view(np.uint16), want[number].view(np.uint16))
    assert np.isnan(got[~number]).all()


def test_widen_half_undoes_narrow_half(tier: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    number = ~np.isnan(halves.view(np.float16))
    wide = over(lambda e, x: e.widen_half(narrow_half(e, x)), tier, np.float32)(halves.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(wide[number], halves.view(np.float16)[number].astype(np.float32))
    assert I16.width == 16
