"""Writing every format: as the PyPI package where it can, within stated errors elsewhere; and the Q8_K activations."""

import gguf
import numpy as np
import pytest

from quant.format import FORMATS, format_by_name
from quant.k_quants import quantize_q8_k
from quant.reference import dequantize, quantize

LIKE_THE_PACKAGE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

# Root mean square error of normally distributed numbers over their own root mean square.
RELATIVE_ERROR = {
    "F32": 0.0,
    "F16": 0.0003,
    "BF16": 0.0018,
    "Q8_0": 0.0056,
    "Q6_K": 0.0182,
    "Q5_K": 0.0368,
    "Q5_1": 0.039,
    "Q5_0": 0.044,
    "Q4_K": 0.073,
    "IQ4_NL": 0.078,
    "IQ4_XS": 0.079,
    "Q4_1": 0.080,
    "Q4_0": 0.088,
    "Q3_K": 0.156,
    "Q2_K": 0.280,
}


def samples(seed=0):
    """Rows of several distributions and sizes, float32[rows, 512]."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            rng.standard_normal((24, 512)),
            rng.standard_normal((8, 512)) * 1e-3,
            rng.standard_normal((8, 512)) * 300,
            rng.standard_t(2, (8, 512)),
            rng.uniform(0.5, 1.5, (4, 512)),
            rng.uniform(-2, -1, (4, 512)),
            rng.integers(-3, 4, (8, 512)) / 2,  # exact halves: ties in rounding
            np.zeros((1, 512)),
            np.full((1, 512), -0.75),
            np.eye(4, 512),
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("name", LIKE_THE_PACKAGE)
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_package(name, seed):
    fmt = format_by_name(name)
    theirs = gguf.quants.quantize(samples(seed), gguf.GGMLQuantizationType(fmt.id)).view(np.uint8)
    assert np.array_equal(quantize(fmt, samples(seed)), theirs)


@pytest.mark.parametrize("name", RELATIVE_ERROR)
def test_round_trip_error(name):
    fmt = format_by_name(name)
    x = np.random.default_rng(5).standard_normal((64, 2048)).astype(np.float32)
    error = dequantize(fmt, quantize(fmt, x)) - x
    assert np.sqrt(np.square(error).mean() / np.square(x).mean()) <= RELATIVE_ERROR[name]


def test_every_format_has_a_stated_error():
    assert set(RELATIVE_ERROR) == {fmt.name for fmt in FORMATS.values()}


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_search_beats_the_plain_scale_on_every_distribution(name):
    """The search minimizes a weighted error; the plain error must not be far above that of mapping the extremes to the ends."""
    plain = {"Q2_K": 3, "Q3_K": 8, "Q4_K": 15, "Q5_K": 31, "Q6_K": 64, "IQ4_NL": 15, "IQ4_XS": 15}[name]
    fmt = format_by_name(name)
    x = samples()[:-6]  # without the constant rows
    rows = x.reshape(-1, 16)
    step = (np.maximum(rows.max(1, keepdims=True), 0) - np.minimum(rows.min(1, keepdims=True), 0)) / plain
    naive = np.rint(rows / np.maximum(step, 1e-30)) * step - rows
    ours = (dequantize(fmt, quantize(fmt, x)) - x).reshape(-1, 16)
    assert (
        np.square(ours / np.abs(x).max(1, keepdims=True).repeat(32, 0)).sum()
        < 2.5 * np.square(naive / np.abs(x).max(1, keepdims=True).repeat(32, 0)).sum()
    )


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_zeros_stay_zeros_and_blocks_are_independent(fmt):
    x = samples()
    raw = quantize(fmt, x)
    assert raw.dtype == np.uint8
    assert raw.shape == (len(x), fmt.row_bytes(512))
    assert np.array_equal(dequantize(fmt, quantize(fmt, np.zeros((2, 512)))), np.zeros((2, 512)))
    halves = np.concatenate([quantize(fmt, x[:, :256]), quantize(fmt, x[:, 256:])], axis=1)
    assert np.array_equal(raw, halves)
    many = np.tile(x, (6, 1))  # more than one slice
    assert np.array_equal(quantize(fmt, many), np.tile(raw, (6, 1)))
    assert quantize(fmt, x.reshape(2, -1, 512)).shape == (2, len(x) // 2, fmt.row_bytes(512))


def test_half_formats_keep_infinity_and_nan():
    x = np.array([[np.inf, -np.inf, np.nan, -0.0]], np.float32)
    for name in ("F16", "BF16", "F32"):
        fmt = format_by_name(name)
        assert np.array_equal(dequantize(fmt, quantize(fmt, x)), x, equal_nan=True)


def test_bf16_rounds_to_nearest_even_and_nan_never_becomes_infinity():
    fmt = format_by_name("BF16")
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF]], np.uint32)
    stored = quantize(fmt, bits.view(np.float32)).view("<u2")[0]
    assert [hex(value) for value in stored] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0x7f80", "0x7fc0", "0xffff"]


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e5, 1e9, 1e12])
def test_numbers_too_small_or_large_for_the_scale_saturate(name, size):
    fmt = format_by_name(name)
    x = np.random.default_rng(6).standard_normal((4, 512)) * size
    y = dequantize(fmt, quantize(fmt, x))
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 1.5 * np.abs(x).max()
    if size == 1e5:
        assert np.sqrt(np.square(y - x).mean() / np.square(x).mean()) <= RELATIVE_ERROR[name] * 1.2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ4_NL"])
def test_blocks_refuse_what_they_cannot_hold(name, bad):
    x = np.zeros((2, 256), np.float32)
    x[1, 7] = bad
    with pytest.raises(ValueError, match=f"NaN or infinity cannot be stored as {name}"):
        quantize(format_by_name(name), x)


def test_rows_must_be_whole_blocks():
    with pytest.raises(ValueError, match="100 elements cannot be Q6_K"):
        quantize(format_by_name("Q6_K"), np.zeros((2, 100), np.float32))


def test_q8_k_activations():
    x = samples()
    q, d, sums = quantize_q8_k(x)
    assert (q.shape, d.shape, sums.shape) == ((len(x), 2, 256), (len(x), 2), (len(x), 2, 16))
    assert (q.dtype, d.dtype, sums.dtype) == (np.int8, np.float32, np.int16)
    values = q * d[..., None]
    error = np.abs(values - x.reshape(values.shape)).max(axis=-1)
    assert (error <= np.abs(d) * 0.5001).all()
    peak = np.abs(x.reshape(values.shape)).max(axis=-1)
    assert (np.abs(q).max(axis=-1)[peak > 0] == 127).all()
    assert np.array_equal(sums, q.reshape(*sums.shape, 16).sum(axis=-1, dtype=np.int64))
    assert (q[peak == 0] == 0).all()
    assert (d[peak == 0] == 0).all()
