"""Packing is a bijection; quantizing scales with its input, treats blocks alike and stays within each format's step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quant.bits import join_at, pack_planes, split_at, unpack_planes
from quant.format import FORMATS, format_by_name
from quant.k_quants import pack_scales_and_minima, unpack_scales_and_minima
from quant.reference import dequantize, quantize

EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
BLOCK_FORMATS = [fmt for fmt in FORMATS.values() if fmt.block_elements > 1]


@st.composite
def rows(draw, least_spread=0.1):
    """float32[2, 256]: noise, with some elements cleared and some replaced by what the framework likes to try."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal(512) * draw(st.floats(least_spread, 1000))
    if draw(st.booleans()):
        x = np.where(rng.random(512) < draw(st.floats(0, 1)), 0, x)
    strange = st.one_of(st.integers(-1000, 1000), st.floats(-1000, 1000, width=16).filter(lambda value: abs(value) > 1))
    for index, value in draw(st.lists(st.tuples(st.integers(0, 511), strange), max_size=40)):
        x[index] = value
    return x.reshape(2, 256).astype(np.float32)


# Largest error of one element over the largest magnitude of its row: a step of the coarsest sub-block and its scale's rounding.
STEP = {
    "Q8_0": 1 / 220,
    "Q6_K": 1 / 24,
    "Q5_0": 1 / 15,
    "Q5_1": 1 / 15,
    "Q5_K": 1 / 10,
    "Q4_0": 1 / 7,
    "Q4_1": 1 / 7,
    "Q4_K": 1 / 5,
    "IQ4_NL": 1 / 5,
    "IQ4_XS": 1 / 5,
    "Q3_K": 1 / 2,
    "Q2_K": 1 / 1.1,
}


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8, 16, 32]), st.data())
def test_planes_round_trip(bits, width, data):
    packed = data.draw(arrays(np.uint8, (3, 2 * width)))
    values = unpack_planes(packed, width, bits)
    assert values.shape == (3, 2 * width * 8 // bits)
    assert values.max() < 1 << bits
    assert np.array_equal(pack_planes(values, width, bits), packed)
    first = [int(byte) & ((1 << bits) - 1) for byte in packed[0, :width]]
    assert values[0, :width].tolist() == first


@given(arrays(np.uint8, (4, 12)), st.integers(1, 7))
def test_scales_and_fields_round_trip(packed, bit):
    scales, minima = unpack_scales_and_minima(packed)
    assert scales.shape == minima.shape == (4, 8)
    assert max(scales.max(), minima.max()) < 64
    assert np.array_equal(pack_scales_and_minima(scales, minima), packed)
    assert np.array_equal(join_at(*split_at(packed, bit), bit), packed)


@EACH_FORMAT
@given(x=rows())
def test_error_is_within_a_step(fmt, x):
    y = dequantize(fmt, quantize(fmt, x))
    bound = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}.get(fmt.name) if fmt.block_elements == 1 else STEP[fmt.name]
    subnormal = 2e-4 if fmt.block_elements > 1 else 0.0  # what a subnormal float16 scale may add
    assert (np.abs(y - x).max(axis=1) <= bound * np.abs(x).max(axis=1) + subnormal).all()


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)
@given(x=rows(least_spread=10), power=st.integers(-2, 4))
def test_powers_of_two_pass_through(fmt, x, power):
    """No decision may depend on the size of the numbers, as long as no float16 scale is subnormal (the drawn sizes see to it)."""
    factor = np.float32(2.0**power)
    assert np.array_equal(dequantize(fmt, quantize(fmt, x * factor)), dequantize(fmt, quantize(fmt, x)) * factor)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_0"])
@given(x=rows())
def test_symmetric_formats_are_idempotent(name, x):
    """What has been stored once is stored again without further loss (up to the rounding of the float16 scale)."""
    fmt = format_by_name(name)
    once = dequantize(fmt, quantize(fmt, x))
    twice = dequantize(fmt, quantize(fmt, once))
    assert np.allclose(once, twice, rtol=2e-3, atol=1e-4)
