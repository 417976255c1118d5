"""The NumPy reference executor against llama.cpp's float32 logits: every supported model, logits and greedy continuation."""

import numpy as np
import pytest

from ggrun.gguf import open_gguf
from ggrun.models import REGISTRY, build_program
from ggrun.models.spec import SpecError
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.executor import Batch
from ggrun.runtime.reference import ReferenceExecutor
from tests.conftest import shared_path
from tests.oracle.models import all_rows, assert_greedy, assert_logits, expected

ROWS = all_rows()
SUPPORTED = [name for name, (row, _) in ROWS.items() if row["arch"] in REGISTRY]


def run_alone(executor: ReferenceExecutor, ids: np.ndarray) -> np.ndarray:
    n = len(ids)
    at = np.arange(n, dtype=np.int32)
    table = np.arange(1, 2 + n // KV_BLOCK_TOKENS, dtype=np.int32)[None]
    return executor.run(Batch(ids.astype(np.int32), at, np.zeros(n, np.int32), table, at))


def test_the_shared_oracle_is_there() -> None:
    shared_path("oracle", "MANIFEST.json")
    assert len(SUPPORTED) >= 25


@pytest.mark.parametrize("name", SUPPORTED)
def test_exact(name: str) -> None:
    row, folder = ROWS[name]
    want = expected(row, folder)
    with open_gguf(folder / name) as file:
        _, program = build_program(file.metadata, file.tensors)
        executor = ReferenceExecutor(program, file.tensors, n_kv_blocks=8)
        n = len(want["tokens"])
        logits = run_alone(executor, np.concatenate([want["tokens"], want["greedy_f32ref"]]))
        assert_logits(row, want, logits[:n], "exact")
        assert_greedy(row, want, logits[n - 1 : -1], "exact")
        executor.close()


@pytest.mark.parametrize("name", sorted(set(ROWS) - set(SUPPORTED)))
def test_other_architectures_are_refused_by_name(name: str) -> None:
    row, folder = ROWS[name]
    with open_gguf(folder / name) as file, pytest.raises(SpecError, match=row["arch"]) as error:
        build_program(file.metadata, file.tensors)
    assert all(arch in str(error.value) for arch in REGISTRY)


def test_the_oracle_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rotary base fails the comparison, so that passing means something."""
    row, folder = ROWS["llama-gqa.Q4_K_M.gguf"]
    want = expected(row, folder)
    with open_gguf(folder / "llama-gqa.Q4_K_M.gguf") as file:
        metadata = {**file.metadata, "llama.rope.freq_base": 20000.0}
        _, program = build_program(metadata, file.tensors)
        logits = run_alone(ReferenceExecutor(program, file.tensors, 8), want["tokens"])
        for mode in ("exact", "quant"):
            with pytest.raises(AssertionError):
                assert_logits(row, want, logits, mode)
