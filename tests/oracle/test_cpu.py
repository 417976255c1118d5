"""The CPU executor, through the whole engine, against llama.cpp's float32 logits within the stated tolerance of quantized activations."""

import numpy as np
import pytest

from ggrun import Engine
from ggrun.models import REGISTRY
from tests.oracle.models import all_rows, assert_greedy, assert_logits, expected

ROWS = all_rows()
SUPPORTED = [name for name, (row, _) in ROWS.items() if row["arch"] in REGISTRY]


@pytest.mark.parametrize("name", SUPPORTED)
def test_quant(name: str) -> None:
    row, folder = ROWS[name]
    want = expected(row, folder)
    n = len(want["tokens"])
    with Engine.open(folder / name, n_ctx=256, n_ubatch=64, n_logits=64) as engine:
        logits = engine.forward(np.concatenate([want["tokens"], want["greedy"]]))
    assert_logits(row, want, logits[:n], "quant")
    assert_greedy(row, want, logits[n - 1 : -1], "quant")
