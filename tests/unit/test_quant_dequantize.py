"""Reading every format: equal bit for bit to the PyPI package, at any shape, in bounded memory."""

import tracemalloc
import warnings

import gguf
import numpy as np
import pytest

from quant.format import FORMATS, format_by_name
from quant.reference import CODECS, dequantize, quantize

EACH_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
SPECIAL_SCALES = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, -65504.0, 6e-8, -6e-8, 6e-5, 1.0, -1.0], np.float16)


def random_bytes(fmt, rows, blocks, seed):
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * fmt.block_bytes), np.uint8)


def package_dequantize(raw, fmt):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        if fmt.block_elements == 1:
            return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(fmt.id))
        return np.concatenate([gguf.quants.dequantize(row[None], gguf.GGMLQuantizationType(fmt.id)) for row in raw])


def assert_same_bits(ours, theirs):
    """Equal as bits; any NaN equals any NaN, since IEEE leaves its payload to the processor."""
    both_nan = np.isnan(ours) & np.isnan(theirs)
    different = (ours.view(np.uint32) != theirs.view(np.uint32)) & ~both_nan
    assert not different.any(), f"{different.sum()} differ, first at {np.argwhere(different)[0]}"


@EACH_FORMAT
@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_equal_the_package(fmt, seed):
    raw = random_bytes(fmt, 33, 5, seed)
    assert_same_bits(dequantize(fmt, raw), package_dequantize(raw, fmt))


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, codec in CODECS.items() for field in codec.layout.names if codec.layout[field] == np.float16],
)
def test_special_scales_equal_the_package(name, field):
    fmt = format_by_name(name)
    raw = random_bytes(fmt, len(SPECIAL_SCALES), 8, 7)
    raw.view(CODECS[name].layout)[field] = SPECIAL_SCALES[:, None]
    assert_same_bits(dequantize(fmt, raw), package_dequantize(raw, fmt))


@EACH_FORMAT
def test_more_than_one_slice_and_any_leading_shape(fmt):
    elements = 3 * 256
    raw = random_bytes(fmt, 2 * 3 * 61, elements // fmt.block_elements, 1)
    whole = dequantize(fmt, raw.reshape(2, 3, 61, -1))
    assert whole.shape == (2, 3, 61, elements)
    assert whole.dtype == np.float32
    row_by_row = np.stack([dequantize(fmt, row) for row in raw])
    assert_same_bits(whole.reshape(-1, elements), row_by_row)


@EACH_FORMAT
def test_rows_of_a_larger_array_and_no_rows(fmt):
    raw = random_bytes(fmt, 6, 4, 2)
    assert_same_bits(dequantize(fmt, raw[::2]), dequantize(fmt, raw)[::2])
    assert dequantize(fmt, raw[:0]).shape == (0, 4 * fmt.block_elements)


def test_input_is_untouched_and_may_be_read_only():
    fmt = format_by_name("Q5_K")
    raw = random_bytes(fmt, 4, 4, 3)
    before = raw.copy()
    raw.flags.writeable = False
    dequantize(fmt, raw)
    assert np.array_equal(raw, before)


def test_row_that_is_no_whole_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match="145 bytes cannot be Q4_K"):
        dequantize(format_by_name("Q4_K"), np.zeros((2, 145), np.uint8))


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
def test_working_memory_does_not_grow_with_the_tensor(name):
    fmt = format_by_name(name)
    raw = quantize(fmt, np.random.default_rng(4).standard_normal((1024, 4096), np.float32))
    tracemalloc.start()
    values = dequantize(fmt, raw)
    peak_reading = tracemalloc.get_traced_memory()[1] - values.nbytes
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    quantize(fmt, values)
    peak_writing = tracemalloc.get_traced_memory()[1] - before - raw.nbytes
    tracemalloc.stop()
    assert peak_reading < values.nbytes / 2
    assert peak_writing < values.nbytes  # a mask of finite values (a quarter) and the slices


def test_known_blocks():
    """One hand-made block of a format of each family, so that a mistake shared with the package would show too."""
    q8_0 = np.zeros((), CODECS["Q8_0"].layout)
    q8_0["d"], q8_0["qs"] = 0.5, np.arange(-16, 16)
    assert dequantize(format_by_name("Q8_0"), np.frombuffer(q8_0.tobytes(), np.uint8)).tolist() == [i / 2 for i in range(-16, 16)]

    q4_k = bytearray(144)
    q4_k[0:4] = np.array([2.0, 0.25], np.float16).tobytes()
    q4_k[4 + 1] = 3  # scale of sub-block 1
    q4_k[4 + 3] = 0b11_000001  # scale of sub-block 3 is 1, top bits of scale 7 are 3
    q4_k[4 + 5] = 40  # minimum of sub-block 1
    q4_k[4 + 11] = 0x25  # low nibbles of scale 7 (5) and minimum 7 (2)
    q4_k[16 + 0] = 0x70  # sub-block 1, element 0: quant 7
    q4_k[16 + 96 + 31] = 0xF0  # sub-block 7, element 31: quant 15
    values = dequantize(format_by_name("Q4_K"), np.frombuffer(bytes(q4_k), np.uint8))
    expected = np.zeros(256, np.float32)
    expected[32:64] = -0.25 * 40
    expected[32] += 2 * 3 * 7
    expected[224:] = -0.25 * 2
    expected[255] += 2 * (3 << 4 | 5) * 15
    assert values.tolist() == expected.tolist()

    iq4_nl = np.array([1.0], np.float16).tobytes() + bytes([0x80 | i for i in range(16)])
    values = dequantize(format_by_name("IQ4_NL"), np.frombuffer(iq4_nl, np.uint8))
    assert values[:16].tolist() == [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    assert values[16:].tolist() == [1] * 16
