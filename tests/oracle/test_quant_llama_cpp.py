"""Our quantizers against llama.cpp's, on the same float32 weights: the plain formats equal, the searched ones no worse than by 2%."""

from collections import defaultdict

import numpy as np
import pytest

from ggrun.gguf import open_gguf
from quant.reference import dequantize, quantize

FILES = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q2_K"]


def rows(tensor):
    return tensor.raw.reshape(-1, tensor.row_bytes)


@pytest.mark.parametrize("name", FILES)
def test_quantizes_as_well_as_llama_cpp(shared, name):
    with open_gguf(shared / "oracle" / "llama-gqa.F32.gguf") as exact, open_gguf(shared / "oracle" / f"llama-gqa.{name}.gguf") as file:
        theirs, ours = defaultdict(float), defaultdict(float)
        for tensor in file.tensors.values():
            fmt = tensor.format
            if fmt.block_elements == 1:
                continue
            weights = dequantize(exact.tensors[tensor.name].format, rows(exact.tensors[tensor.name]))
            made = quantize(fmt, weights)
            if fmt.name in ("Q4_0", "Q5_0", "Q8_0"):
                assert np.array_equal(made, rows(tensor)), tensor.name
            theirs[fmt.name] += float(np.square(dequantize(fmt, rows(tensor)) - weights).sum())
            ours[fmt.name] += float(np.square(dequantize(fmt, made) - weights).sum())
    assert name[:2] in {fmt[:2] for fmt in theirs}  # the format the file is named after was there
    for fmt in theirs:
        assert np.sqrt(ours[fmt]) <= 1.02 * np.sqrt(theirs[fmt]), fmt
