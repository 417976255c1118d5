"""Keys and values that come back from host memory, from disk and from a slot's file, and embeddings, with all or some layers on the GPU."""

from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.plan.pins import read_pins

pytestmark = pytest.mark.usefixtures("gpu")
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
RNG = np.random.default_rng(5)
PROMPT, OTHER = ([int(i) for i in RNG.integers(300, 1500, 75)] for _ in range(2))
WHERE = {"gpu": {"executor": "cuda"}, "some layers": {"placement": read_pins(n_gpu_layers="2")}}


def answer(engine: Engine, prompt: list[int]) -> tuple[int, list[tuple[int | None, float]]]:
    generation = engine.submit(prompt, GREEDY, n_predict=3)
    events = [(event.id, event.logprob) for event in generation]
    return generation.timings.cache_n, events


@pytest.mark.parametrize("where", ["gpu", pytest.param("some layers", marks=pytest.mark.slow)])
def test_what_comes_back_is_what_was_there(where: str, tmp_path: Path) -> None:
    options = {"n_ctx": 128, "n_ubatch": 32, **WHERE[where]}
    with Engine.open(None, cram_mib=8, disk_cache=tmp_path / "cache", **options) as engine:
        assert any(segment.device.startswith("CUDA") for segment in engine.plan.segments)
        answer(engine, PROMPT)
        want = answer(engine, PROMPT)  # found in the pool
        engine.save_slot(0, tmp_path / "slot")
        answer(engine, OTHER)
        assert answer(engine, PROMPT) == want
        prefixes = engine._loop._prefixes
        while engine._loop.call(lambda: bool(prefixes._wanted)):
            pass
        prefixes._disk.flush()
        embedded = {pooling: engine.embed(PROMPT, pooling) for pooling in ("mean", "last", "cls")}
    with Engine.open(None, **options) as engine:
        engine.restore_slot(0, tmp_path / "slot")
        assert answer(engine, PROMPT) == want
    with Engine.open(None, disk_cache=tmp_path / "cache", **options) as engine:
        found, events = answer(engine, PROMPT)
        assert found == 64
        assert [id for id, _ in events] == [id for id, _ in want[1]]
        np.testing.assert_allclose([p for _, p in events], [p for _, p in want[1]], atol=0.1)  # other chunks of the prompt's end
    with Engine.open(None, n_ctx=128, n_ubatch=32, executor="cpu", disk_cache=tmp_path / "cache") as engine:
        assert answer(engine, PROMPT)[0] == 0, "the CPU's own bits are others"
        for pooling, row in embedded.items():
            other = engine.embed(PROMPT, pooling)
            assert ((row - other) ** 2).sum() < 1e-2 * (other**2).sum(), pooling
