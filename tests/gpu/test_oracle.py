"""Every model of the oracle whole on the (stand-in) GPU, through the engine, within the tolerance of quantized activations."""

import numpy as np
import pytest

from ggrun import Engine
from ggrun.models import REGISTRY
from ggrun.plan.pins import ALL, Pins
from tests.oracle.models import all_rows, assert_greedy, assert_logits, expected

pytestmark = pytest.mark.usefixtures("gpu")
ROWS = all_rows()
SUPPORTED = [name for name, (row, _) in ROWS.items() if row["arch"] in REGISTRY]
QUICK = {"llama-gqa.Q4_K_M.gguf", "qwen3.Q8_0.gguf"}


def logits_of(name: str, pins: Pins, n_tokens: int, **options: object) -> np.ndarray:
    row, folder = ROWS[name]
    want = expected(row, folder)
    ids = np.concatenate([want["tokens"], want["greedy"]])[:n_tokens]
    with Engine.open(folder / name, n_ctx=256, n_ubatch=64, n_logits=64, placement=pins, **options) as engine:
        assert any(segment.device == "CUDA0" for segment in engine.plan.segments)
        return engine.forward(ids)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SUPPORTED])
def test_whole(name: str) -> None:
    row, folder = ROWS[name]
    want = expected(row, folder)
    n = len(want["tokens"])
    logits = logits_of(name, Pins(n_gpu_layers=ALL), n + len(want["greedy"]))
    assert_logits(row, want, logits[:n], "quant")
    assert_greedy(row, want, logits[n - 1 : -1], "quant")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral.Q4_K_M.gguf", "qwen2.Q4_K_M.gguf", "llama-rope3.Q8_0.gguf"])
@pytest.mark.parametrize(
    "pins", [Pins(n_gpu_layers=1), Pins(n_gpu_layers=ALL, n_cpu_moe=ALL, n_cpu_ffn=ALL), Pins(n_gpu_layers=ALL, kv_offload=False)]
)
def test_parted(name: str, pins: Pins) -> None:
    if name not in SUPPORTED:
        pytest.skip("the shared oracle is not there")
    row, folder = ROWS[name]
    want = expected(row, folder)
    n = len(want["tokens"])
    assert_logits(row, want, logits_of(name, pins, n), "quant")
