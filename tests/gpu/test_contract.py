"""The plan is a contract: what is allocated equals the ledger, nothing is after "ready", and a token moves and reads what it must, once."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggrun import Engine
from ggrun.engine.loading import EXECUTORS, Options, load, plan_model
from ggrun.engine.sampling import Sampling
from ggrun.errors import GgrunError
from ggrun.plan.pins import ALL, Pins
from ggrun.runtime.cuda.executor import CudaExecutor
from ggrun.runtime.cuda.memory import OutOfDeviceMemory
from tests.conftest import EMBEDDED
from tests.cpu_programs import Model
from tests.gpu.machines import planned, running, sequences

pytestmark = pytest.mark.usefixtures("driver")
IDS = np.random.default_rng(7).integers(0, 64, 4096).astype(np.int32)
ON_GPU = ("weights", "kv", "scratch", "stream")
KINDS = st.sampled_from(["f16", "q8_0", "q4_0"])
MODEL = Model("Q8_0", head_dim=32, head_dim_v=32, n_rot=32, n_layer=1)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_ubatch=st.sampled_from([1, 3, 8, 20, 64]),
    n_seqs=st.integers(1, 3),
    n_ctx=st.integers(32, 300),
    kind=KINDS,
    on_gpu=st.sets(st.sampled_from(["embed", "layer.0", "head"]), min_size=1),
)
def test_allocated_equals_ledger(driver, n_ubatch, n_seqs, n_ctx, kind, on_gpu) -> None:
    program, tensors = MODEL.build()
    where = dict.fromkeys(on_gpu, "CUDA0")
    pins = {"n_ubatch": max(n_ubatch, n_seqs), "n_seqs": n_seqs, "n_ctx": n_ctx, "n_logits": n_seqs, "type_k": kind, "type_v": kind}
    ledger = planned(program, where, **pins).ledger
    before = driver.counters()
    with running(program, tensors, where, **pins) as r:
        now = driver.counters()
        gpu = sum(ledger.total("CUDA0", purpose) for purpose in ON_GPU)
        assert now["used"][0] - sum(before["used"]) == gpu
        cpu = [e for e in getattr(r.executor, "_executors", [r.executor]) if e.in_host_memory]
        pinned = [e for e in getattr(r.executor, "_executors", [r.executor]) if isinstance(e, CudaExecutor)]
        assert sum(e.pinned_bytes for e in pinned) == ledger.total("CPU", "staging")
        assert sum(e.allocated_bytes for e in cpu) == ledger.total("CPU", "kv") + ledger.total("CPU", "scratch")


def test_nothing_is_allocated_after_ready(driver) -> None:
    """Prompts of all kinds, then tokens, until the context's last cell; every call of the driver that takes memory fails now."""
    program, tensors = MODEL.build()
    with running(program, tensors, n_ctx=512, n_seqs=2, n_ubatch=32) as r:
        s = sequences(r.plan)
        driver.ready()
        try:
            at = 0
            for n in (1, 2, 5, 8, 9, 32, 31, 32, 32, 32, 32):
                r.executor.run(s.batch([(0, at, IDS[at : at + n])], [n - 1]))
                at += n
            while at < r.plan.shape.n_ctx:
                assert np.isfinite(r.executor.run(s.batch([(0, at, IDS[at : at + 1]), (1, at - 215, IDS[at : at + 1])]))).all()
                at += 1
            r.executor.copy_block(1, 2)
        finally:
            driver.ready(False)
        assert driver.counters()["after_ready"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("window", "n_ubatch"), [(64, 512), (0, 2048)])
def test_a_long_context_is_filled(driver, window: int, n_ubatch: int) -> None:
    """32k tokens, the last one included: where each looks at the 64 before it (half a minute), and where each looks at all (three)."""
    heads = {"n_embd": 32, "n_head": 1, "n_head_kv": 1, "head_dim": 16, "head_dim_v": 16, "n_ff": 32, "n_layer": 1}
    program, tensors = Model("F32", window=window, **heads).build()
    last = 32768 - n_ubatch
    with running(program, tensors, n_ctx=32768, n_ubatch=n_ubatch, n_logits=1) as r:
        s = sequences(r.plan)
        driver.ready()
        try:
            for at in range(0, last, n_ubatch):
                r.executor.run(s.batch([(0, at, IDS[:n_ubatch])], []))
            r.executor.run(s.batch([(0, last, IDS[: n_ubatch - 1])], []))
            assert np.isfinite(r.executor.run(s.batch([(0, 32767, IDS[:1])]))).all()
        finally:
            driver.ready(False)
        assert driver.counters()["after_ready"] == 0


@pytest.mark.parametrize("n_ctx", [2048, pytest.param(32768, marks=pytest.mark.slow)])
def test_the_last_cells_of_a_context(driver, n_ctx: int) -> None:
    """Tokens that look at all others; what these are does not matter here."""
    program, tensors = Model("Q8_0", n_head=1, n_head_kv=1, head_dim=32, head_dim_v=32, n_rot=32, n_layer=1).build()
    with running(program, tensors, n_ctx=n_ctx) as r:
        s = sequences(r.plan)
        driver.ready()
        try:
            for n in (28, 7, 1):
                r.executor.run(s.batch([(0, n_ctx - n, IDS[:n])]))
        finally:
            driver.ready(False)


def counted(driver, batch_of, program, tensors, where="CUDA0", **pins) -> dict:
    """Counters of one batch after a first of 5 tokens."""
    with running(program, tensors, where, **pins) as r:
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:5])]))
        driver.reset()
        r.executor.run(batch_of(s))
        return driver.counters()


def test_a_token_is_one_graph_one_copy_each_way_and_reads_each_weight_once(driver) -> None:
    model = Model("Q8_0")
    program, tensors = model.build()
    counters = counted(driver, lambda s: s.batch([(0, 5, IDS[5:6])]), program, tensors)
    assert (counters["graph_launches"], counters["launch_calls"]) == (1, 0)
    assert (counters["copies_h2d"], counters["copies_d2h"], counters["copies_d2d"]) == (1, 1, 0)
    assert counters["bytes_d2h"] == 4 * model.n_vocab
    matrices = sum(program.weights[op.weights[0]].n_bytes for op in program.ops if op.kind == "linear")
    row = tensors["token_embd.weight"].row_bytes
    assert counters["weight_bytes"] == matrices + row
    assert counters["launches"] == 13 * model.n_layer + 6


def test_several_tokens_read_each_weight_once(driver) -> None:
    program, tensors = Model("Q8_0").build()
    alone = counted(driver, lambda s: s.batch([(0, 5, IDS[5:6])]), program, tensors)["weight_bytes"]
    row = tensors["token_embd.weight"].row_bytes
    for n in (2, 4, 8):
        assert counted(driver, lambda s, n=n: s.batch([(0, 5, IDS[5 : 5 + n])]), program, tensors)["weight_bytes"] == alone + (n - 1) * row


def test_experts_that_are_not_chosen_are_not_read(driver) -> None:
    program, tensors = Model("Q8_0", n_expert=8, n_used=2, n_layer=1).build()
    counters = counted(driver, lambda s: s.batch([(0, 5, IDS[5:6])]), program, tensors)
    chosen = sum(
        program.weights[op.weights[0]].n_bytes * (2 / 8 if op.kind == "expert_linear" else 1)
        for op in program.ops
        if op.kind in ("linear", "expert_linear")
    )
    assert counters["weight_bytes"] == chosen + tensors["token_embd.weight"].row_bytes


def test_out_of_memory_while_loading_is_a_sentence(driver) -> None:
    program, tensors = MODEL.build()
    before = driver.counters()
    driver.set(memory=66 << 20)
    with (
        pytest.raises(OutOfDeviceMemory, match=r"CUDA0: the plan needs .* free; close what else uses the GPU"),
        running(program, tensors, n_ctx=65536),
    ):
        pass
    assert sum(driver.counters()["used"]) == sum(before["used"])
    assert driver.counters()["pinned"] == before["pinned"]


def open_embedded(driver, pins: Pins, shrink: bool):
    """The embedded model loaded, the GPU's memory gone between the plan and the loading when `shrink`."""
    options = Options(n_ctx=256, n_ubatch=16, placement=pins)
    made = plan_model(EMBEDDED, options)
    if shrink:
        driver.set(memory=68 << 20)  # 4 MiB besides the context
    return load(made, options, None)


def test_the_cpu_goes_on_when_nobody_insisted(driver) -> None:
    loaded, executor = open_embedded(driver, Pins(), True)
    try:
        assert [segment.device for segment in loaded.plan.segments] == ["CPU"]
        assert loaded.plan.notes[0].startswith("everything runs on the CPU: CUDA0: the plan needs")
    finally:
        executor.close()
        loaded.file.close()


def test_who_insists_is_told(driver) -> None:
    with pytest.raises(OutOfDeviceMemory):
        open_embedded(driver, Pins(n_gpu_layers=ALL), True)


def test_the_embedded_model_answers_on_the_gpu_and_reuses_prefixes() -> None:
    with Engine.open(n_ctx=256, n_ubatch=16) as engine:
        assert [segment.device for segment in engine.plan.segments] == ["CUDA0"]
        assert engine.plan.ledger.total("CUDA0", "weights") >= sum(w.n_bytes for w in engine.plan.program.weights.values())
        prompt = engine.tokenizer.encode("What does len do? It returns the number of items of a container. " * 3)[:36]
        greedy = Sampling(temperature=0)
        first = engine.submit(prompt, greedy, n_predict=3)
        text = first.wait().text
        second = engine.submit(prompt, greedy, n_predict=3)
        assert second.wait().text == text
        assert first.timings.cache_n == 0
        assert second.timings.cache_n == len(prompt) - 1 == 35  # a whole block, and the cells of another one, copied


def test_no_gpu_and_a_cuda_executor(driver) -> None:
    driver.set(devices=0)
    with pytest.raises(GgrunError, match="no CUDA executor without a GPU: .*driver finds no GPU"):
        plan_model(EMBEDDED, Options(executor="cuda"))
    assert set(EXECUTORS) == {"auto", "cpu", "cuda", "reference"}
