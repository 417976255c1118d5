"""The CUDA executor through the real PyCUDA on the stand-in driver: right numbers, whatever the batch; graphs; blocks; cancelling."""

import threading

import numpy as np
import pytest

from ggrun.runtime.executor import Cancelled
from tests.cpu_programs import Model
from tests.gpu.machines import error, reference, running, sequences

pytestmark = pytest.mark.usefixtures("gpu")
NMSE = 1e-3  # of logits with quantized activations against float32 ones, as the CPU's
IDS = np.random.default_rng(3).integers(0, 64, 200).astype(np.int32)

MODELS = {
    "Q8_0": Model("Q8_0"),
    "Q4_K": Model("Q4_K", n_embd=256, n_head=4, n_head_kv=2, head_dim=64, head_dim_v=64, n_rot=64, n_ff=256, n_layer=1),
    "F16": Model("F16", n_embd=48, n_ff=80, head_dim=16),
    "bias, neox": Model("Q8_0", bias=True, style="neox", n_rot=8),
    "window, softcap": Model("Q8_0", window=20, softcap=5.0),
    "experts": Model("Q8_0", n_expert=4, n_layer=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str) -> None:
    """A prompt in pieces of all kinds, then single tokens."""
    program, tensors = MODELS[name].build()
    with running(program, tensors) as r:
        s = sequences(r.plan)
        batches = [
            s.batch([(0, 0, IDS[:20])]),
            s.batch([(0, 20, IDS[20:25])]),
            s.batch([(0, 25, IDS[25:57])]),
            s.batch([(0, 57, IDS[57:58])]),
        ]
        got = [r.executor.run(batch).copy() for batch in batches]
    for mine, want in zip(got, reference(program, tensors, batches)):
        assert error(mine, want) < NMSE


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_kv(kind: str) -> None:
    program, tensors = Model("Q8_0", head_dim=32, head_dim_v=32, n_rot=32).build()
    with running(program, tensors, type_k=kind, type_v=kind) as r:
        s = sequences(r.plan)
        batches = [s.batch([(0, 0, IDS[:20])]), s.batch([(0, 20, IDS[20:21])])]
        got = [r.executor.run(batch).copy() for batch in batches]
    for mine, want in zip(got, reference(program, tensors, batches, kind)):
        assert error(mine, want) < 4 * NMSE


def test_several_sequences_and_wanted_rows() -> None:
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors, n_seqs=3, n_ctx=192) as r:
        s = sequences(r.plan)
        batches = [
            s.batch([(0, 0, IDS[:12]), (2, 0, IDS[50:61]), (1, 0, IDS[30:33])], [11, 22]),
            s.batch([(2, 11, IDS[61:62]), (0, 12, IDS[12:13]), (1, 3, IDS[33:34])]),
            s.batch([(1, 4, IDS[34:35]), (0, 13, IDS[13:30])], [0, 17]),
            s.batch([(0, 30, IDS[30:40])], []),
        ]
        got = [r.executor.run(batch).copy() for batch in batches]
    for mine, want in zip(got, reference(program, tensors, batches)):
        assert mine.shape == want.shape
        assert mine.size == 0 or error(mine, want) < NMSE


def test_graphs_equal_plain_launches_to_the_bit(monkeypatch: pytest.MonkeyPatch, driver) -> None:
    from ggrun.runtime.cuda.executor import CudaExecutor

    program, tensors = MODELS["Q8_0"].build()
    results = []
    for graphs in (True, False):
        if not graphs:
            monkeypatch.setattr(CudaExecutor, "_capture", lambda self: None)
        with running(program, tensors) as r:
            s = sequences(r.plan)
            driver.reset()
            results.append([r.executor.run(s.batch([(0, at, IDS[at : at + n])])).copy() for at, n in ((0, 1), (1, 3), (4, 8), (12, 1))])
            assert driver.counters()["graph_launches"] == (4 if graphs else 0)
    for graph, plain in zip(*results):
        assert np.array_equal(graph, plain)


def test_batched_equals_alone() -> None:
    """Within rounding: prompts multiply attention weights as float16, single tokens do not, and sums are ordered differently."""
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors, n_seqs=2) as r:
        s = sequences(r.plan)
        alone = [r.executor.run(s.batch([(0, at, IDS[at : at + 1])])).copy()[0] for at in range(20)]
        together = r.executor.run(s.batch([(1, 0, IDS[:20])])).copy()
    assert error(together, np.array(alone)) < 1e-4


def test_copied_blocks_serve_another_sequence() -> None:
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors, n_seqs=2, n_ctx=256) as r:
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:40])], [])) if r.plan.shape.n_ubatch >= 40 else [
            r.executor.run(s.batch([(0, at, IDS[at : at + 20])], [])) for at in (0, 20)
        ]
        want = r.executor.run(s.batch([(0, 40, IDS[40:41])])).copy()
        for block in range(2):
            r.executor.copy_block(int(s.tables[0, block]), int(s.tables[1, block]))
        got = r.executor.run(s.batch([(1, 40, IDS[40:41])]))
        assert np.array_equal(got, want)


def test_it_may_be_made_in_one_thread_and_run_in_another() -> None:
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors) as r:
        batch = sequences(r.plan).batch([(0, 0, IDS[:3])])
        want = r.executor.run(batch).copy()
        found: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: found.append(r.executor.run(batch).copy()))
        thread.start()
        thread.join()
    assert np.array_equal(found[0], want)


def test_an_abort_stops_the_next_run_once() -> None:
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors) as r:
        s = sequences(r.plan)
        for n in (1, 20):
            batch = s.batch([(0, 0, IDS[:n])])
            want = r.executor.run(batch).copy()
            r.executor.abort()
            with pytest.raises(Cancelled):
                r.executor.run(batch)
            assert np.array_equal(r.executor.run(batch), want)


def test_an_abort_is_seen_between_launches(monkeypatch: pytest.MonkeyPatch, driver) -> None:
    from ggrun.runtime.cuda import queue

    monkeypatch.setattr(queue, "PORTION", 4)
    program, tensors = MODELS["Q8_0"].build()
    with running(program, tensors) as r:
        batch = sequences(r.plan).batch([(0, 0, IDS[:20])])
        driver.reset()
        r.executor.run(batch)
        whole = driver.counters()["launches"]
        enqueue, seen = queue.Queue.enqueue, []

        def aborting(self, prepared):
            seen.append(1)
            if len(seen) == 2:
                r.executor.abort()
            enqueue(self, prepared)

        monkeypatch.setattr(queue.Queue, "enqueue", aborting)
        driver.reset()
        with pytest.raises(Cancelled):
            r.executor.run(batch)
        assert driver.counters()["launches"] == 8 < whole


def test_closing_twice_frees_everything(driver) -> None:
    program, tensors = MODELS["Q8_0"].build()
    before = driver.counters()
    with running(program, tensors) as r:
        assert driver.counters()["used"][0] > 0
        r.executor.close()
        assert r.executor.allocated_bytes == 0
    after = driver.counters()
    assert sum(after["used"]) == sum(before["used"])
    assert after["pinned"] == before["pinned"]


def test_a_gpu_is_measured() -> None:
    """Small sizes: on the stand-in driver the figures mean nothing, but every part of the measuring runs."""
    from ggrun.runtime.cuda.tuning import measure
    from ggrun.runtime.yardstick import KINDS, Sizes
    from tests.gpu.machines import places

    sizes = Sizes(width=256, rows=64, vocabulary=64, tokens=32, depth=64, n_head=4, n_head_kv=2)
    speeds = measure(places()[1], sizes=sizes)
    assert set(speeds.flops) == set(KINDS)
    copies = (speeds.to_device, speeds.from_device, speeds.latency)
    for figure in (speeds.read, *speeds.flops.values(), speeds.step, speeds.attention, *copies):
        assert 0 < figure < float("inf")
    assert speeds.driver_bytes >= 0  # 0: a second context took nothing, so the guess stands
