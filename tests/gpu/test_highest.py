"""The highest logits found on the device: those of the whole row, with one small copy; all logits where that cannot be."""

from pathlib import Path

import numpy as np
import pytest

from ggrun.runtime.executor import Highest
from tests.cpu_programs import Model
from tests.gpu.machines import running, sequences

pytestmark = pytest.mark.usefixtures("gpu")
IDS = np.random.default_rng(3).integers(0, 64, 40).astype(np.int32)


@pytest.mark.parametrize("where", ["CUDA0", {"layer.1.ffn": "CUDA0", "head": "CUDA0"}, {"layer.0.attn": "CUDA0"}])
def test_the_same_as_of_all_logits(where: str | dict[str, str]) -> None:
    """Wherever the head is; on the CPU all logits come back."""
    program, tensors = Model("Q8_0").build()
    with running(program, tensors, where, n_seqs=2, n_ctx=128) as r:
        s = sequences(r.plan)
        batch = s.batch([(0, 0, IDS[:9]), (1, 0, IDS[:3])], [8, 11])
        logits = r.executor.run(batch).copy()
        found = r.executor.run_highest(batch, 5)
        if where == {"layer.0.attn": "CUDA0"}:
            assert np.array_equal(found, logits)
            return
        assert isinstance(found, Highest)
        right = np.argsort(-logits, -1, kind="stable")[:, :5]
        assert np.array_equal(found.ids, right)
        assert np.array_equal(found.logits, np.take_along_axis(logits, right, -1))
        assert found.log_totals == pytest.approx(np.log(np.exp(logits.astype(np.float64)).sum(-1)), abs=1e-4)
        assert not isinstance(r.executor.run_highest(batch, 1000), Highest)  # more than there are


def test_a_token_needs_one_small_copy(driver) -> None:
    program, tensors = Model("Q8_0", n_vocab=5000).build()
    with running(program, tensors) as r:
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:9])]))
        driver.reset()
        found = r.executor.run_highest(s.batch([(0, 9, IDS[9:10])]), 40)
        assert isinstance(found, Highest)
        assert driver.counters()["bytes_d2h"] == 8 * 41


def test_whole_engine_samples_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and seeded tokens, with the highest logits and with all."""
    from ggrun import Engine
    from ggrun.engine.sampling import Sampler, Sampling

    def tokens() -> list[list[int]]:
        with Engine.open(None, n_ctx=128, executor="cuda", n_ubatch=64) as engine:
            ids = engine.tokenizer.encode("What does len do?")
            return [
                [e.id for e in engine.submit(ids, Sampling(seed=4, temperature=t), n_predict=6) if hasattr(e, "id")] for t in (0.0, 0.8)
            ]

    few = tokens()
    monkeypatch.setattr(Sampler, "n_highest", 0)
    assert tokens() == few
