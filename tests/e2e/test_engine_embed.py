"""Embeddings: the hidden rows after the last norm, pooled; among other sequences, on every executor."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.embedding import default_pooling
from ggrun.engine.engine import ContextExceeded
from ggrun.errors import GgrunError
from ggrun.runtime.cpu.executor import CpuExecutor
from ggrun.runtime.executor import Batch, Cancelled
from ggrun.runtime.reference import ReferenceExecutor
from tests.conftest import shared_path
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
PROMPT = [int(i) for i in np.random.default_rng(3).integers(3, 380, 150)]


def rows(path: Path, ids: list[int]) -> np.ndarray:
    """Normed rows [len(ids), n_embd] as the reference computes them."""
    with Engine.open(path, n_ctx=512, executor="reference", n_ubatch=512, n_logits=256) as engine:
        engine.forward(ids)
        program = engine.plan.program
        take = next(i for i, op in enumerate(program.ops) if op.kind == "take_rows")
        matrix = next(op for op in program.ops[take:] if op.kind == "linear")
        return engine._executor.values[matrix.inputs[0]].copy()


@pytest.mark.parametrize(("name", "bound"), [("llama-gqa.Q4_K_M", 1e-3), ("qwen2.Q8_0", 1e-3), ("mixtral.Q4_K_M", 1e-2)])
def test_pooled_rows_are_the_references(name: str, bound: float) -> None:
    path = LOCAL / f"{name}.gguf"
    if not path.exists():
        path = shared_path("oracle", f"{name}.gguf")
    want = rows(path, PROMPT)
    pooled = {"mean": want.mean(0), "last": want[-1], "cls": want[0]}
    for executor, error in (("reference", 1e-7), ("cpu", bound)):  # NumPy adds in another order when there are other rows
        with Engine.open(path, n_ctx=512, n_ubatch=48, executor=executor) as engine:
            for pooling, row in pooled.items():
                got = engine.embed(PROMPT, pooling)
                assert got.dtype == np.float32
                assert got.shape == (engine.spec.n_embd,)
                assert ((got - row) ** 2).sum() < error * (row**2).sum(), (executor, pooling)
            assert engine.status().kv_used == 0


@pytest.mark.parametrize("name", ["llama-gqa.Q4_K_M", "qwen3.Q8_0"])
def test_the_last_row_gives_llama_cpps_logits(name: str) -> None:
    """The oracle has no embeddings, but the output matrix makes its logits of them."""
    expected = np.load(LOCAL / f"{name}.expected.npz")
    ids = expected["tokens"].tolist()
    with Engine.open(LOCAL / f"{name}.gguf", n_ctx=128, n_ubatch=20) as engine:
        head = next(op for op in reversed(engine.plan.program.ops) if op.kind == "linear")
        matrix = ReferenceExecutor(engine.plan.program, engine.file.tensors, 0).weight(head.weights[0])
        for n in (1, 30, len(ids)):
            got, want = matrix @ engine.embed(ids[:n], "last"), expected["logits"][n - 1]
            assert ((got - want) ** 2).sum() < 1e-3 * ((want - want.mean()) ** 2).sum()


def test_chunks_and_company_do_not_change_a_bit() -> None:
    want = None
    for n_ubatch in (512, 32, 7):
        with Engine.open(MODEL, n_ctx=2048, n_parallel=3, n_ubatch=n_ubatch) as engine:
            alone = {pooling: engine.embed(PROMPT, pooling) for pooling in ("mean", "last", "cls")}
            talkers = [engine.submit(PROMPT[i:], GREEDY, on_overflow="shift") for i in range(3)]
            for talker in talkers:
                next(iter(talker))
            for pooling, row in alone.items():
                np.testing.assert_array_equal(engine.embed(PROMPT, pooling), row)
            for talker in talkers:
                talker.cancel()
                talker.wait()
            for pooling, row in alone.items():
                np.testing.assert_array_equal(row, (want or alone)[pooling])
            want = want or alone
            assert engine.status().kv_used == 0


def test_others_go_on_and_prefixes_are_shared() -> None:
    with Engine.open(MODEL, n_ctx=1024, n_parallel=2, n_ubatch=64) as engine:
        first = engine.submit(PROMPT, GREEDY, n_predict=300)
        next(iter(first))
        results: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda i=i: results.append(engine.embed([*PROMPT, i], "mean"))) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 5
        assert len(first.wait().ids) == 300
        found = engine.submit([*PROMPT, 7], GREEDY, n_predict=1).wait().timings.cache_n
        assert found >= len(PROMPT)
        steps = []
        run = engine._executor.run_hidden
        engine._executor.run_hidden = lambda batch: steps.append(len(batch.ids)) or run(batch)
        engine.embed([*PROMPT, 7, 9], "last")
        assert sum(steps) <= 2 + 31, "the beginning was there"
        engine.embed(PROMPT, "cls")
        assert steps[-1] == 1


def test_short_texts_share_a_batch() -> None:
    texts = [[int(i) for i in np.random.default_rng(i).integers(3, 380, 3 + 5 * i)] for i in range(9)]
    with Engine.open(MODEL, n_ctx=1024, n_parallel=4, n_ubatch=64) as engine:
        alone = [engine.embed(text, "mean") for text in texts]
        sizes: list[int] = []
        run, go = engine._executor.run_hidden, threading.Event()
        engine._executor.run_hidden = lambda batch: sizes.append(len(set(batch.seqs.tolist()))) or run(batch)
        together: dict[int, np.ndarray] = {}
        threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, engine.embed(texts[i], "mean"))) for i in range(9)]
        busy = threading.Thread(target=lambda: engine._loop.call(lambda: go.wait(5)))  # so that all of them are there
        busy.start()
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        go.set()
        for thread in (busy, *threads):
            thread.join(10)
        assert max(sizes) == 4
        assert len(sizes) < 9
        for i, row in enumerate(alone):
            np.testing.assert_array_equal(together[i], row)
        assert engine.status().kv_used == 0


def test_cancelled_within_200_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = CpuExecutor.run_hidden

    def slowly(self: CpuExecutor, batch: Batch) -> np.ndarray:
        time.sleep(0.02)  # or a fast machine is done before anyone cancels
        return compute(self, batch)

    monkeypatch.setattr(CpuExecutor, "run_hidden", slowly)
    with Engine.open(MODEL, n_ctx=4096, n_ubatch=32) as engine:
        long = (PROMPT * 30)[:4000]
        at: list[float] = []

        def cancelled() -> bool:
            at.append(time.perf_counter())
            return len(at) == 2

        with pytest.raises(Cancelled):
            engine.embed(long, "mean", cancelled)
        assert time.perf_counter() - at[1] < 0.2
        assert engine.status().kv_used == 0
        assert engine.embed(PROMPT, "mean", lambda: False).any()


def test_what_cannot_be_embedded() -> None:
    with Engine.open(MODEL, n_ctx=128) as engine:
        with pytest.raises(ContextExceeded):
            engine.embed(PROMPT, "mean")
        with pytest.raises(GgrunError, match="pooling 'max' is not known; choose one of mean, last, cls"):
            engine.embed(PROMPT[:5], "max")
        with pytest.raises(GgrunError, match="empty"):
            engine.embed([])
        assert engine.embed(PROMPT[:128]).shape == (engine.spec.n_embd,)


def test_closing_ends_who_waits() -> None:
    engine = Engine.open(MODEL, n_ctx=4096, n_ubatch=16)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            engine.embed((PROMPT * 30)[:4000], "mean")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    engine.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert all(isinstance(error, GgrunError) for error in errors)


def test_the_files_own_pooling() -> None:
    assert default_pooling({"llama.pooling_type": 1}, "llama") == "mean"
    assert default_pooling({"llama.pooling_type": 2}, "llama") == "cls"
    assert default_pooling({"llama.pooling_type": 0}, "llama") == "last"
    assert default_pooling({"llama.pooling_type": 99}, "llama") == "last"
    assert default_pooling({}, "llama") == "last"
