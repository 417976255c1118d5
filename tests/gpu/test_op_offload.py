"""Long prompts computed on the GPU with the CPU's weights: the same results, every byte listed, each weight streamed once a batch."""

import threading
import time

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.errors import GgrunError
from ggrun.plan.cost import Cost
from ggrun.plan.pins import read_pins
from ggrun.runtime.cpu import residency
from ggrun.runtime.cuda.device import CudaDevice
from ggrun.runtime.executor import Cancelled
from tests.gpu.machines import planned, running, sequences
from tests.gpu.test_hybrid import Parted, assert_alike

pytestmark = pytest.mark.usefixtures("gpu")
IDS = np.random.default_rng(6).integers(0, 64, 100).astype(np.int32)
FROM = 16
PARTS = [[(0, 0, IDS[:20])], [(0, 20, IDS[20:21])], [(0, 21, IDS[21:41])], [(0, 41, IDS[41:46])]]  # two are long


class Layers(Parted):
    """Units are named as in models: layer.N.attn and layer.N.ffn or, in a mixture, layer.N.experts."""

    def build(self, seed: int = 0):
        program, tensors = super().build(seed)
        names = {unit: f"{unit}.attn" for unit in program.units if unit.count(".") == 1}
        if self.n_expert:
            names |= {unit: unit.replace("ffn", "experts") for unit in program.units if unit.endswith("ffn")}
        ops = tuple(type(op)(op.kind, op.inputs, op.outputs, op.weights, op.params, names.get(op.unit, op.unit)) for op in program.ops)
        states = {k: type(s)(s.name, names.get(s.unit, s.unit), *(getattr(s, f) for f in DIMS)) for k, s in program.states.items()}
        units = tuple(names.get(unit, unit) for unit in program.units)
        return type(program)(ops, program.buffers, program.weights, states, units, program.n_vocab), tensors


DIMS = ("n_head_kv", "head_dim_k", "head_dim_v")
DENSE, MIXTURE = Layers("Q8_0", n_layer=3), Layers("Q8_0", n_layer=3, n_expert=4)


def logits(program, tensors, where, n_gpus: int = 1, **pins: object) -> list[np.ndarray]:
    with running(program, tensors, where, n_gpus, **pins) as r:
        s = sequences(r.plan)
        return [r.executor.run(s.batch(part)).copy() for part in PARTS]


CUTS = {
    "last layer": lambda unit: unit.startswith("layer.2"),
    "first layer": lambda unit: unit.startswith("layer.0"),
    "head": lambda unit: unit == "head",
    "attention": lambda unit: unit.endswith("attn"),
    "no feed-forward": lambda unit: not unit.endswith(("ffn", "experts")),
    "one feed-forward": lambda unit: unit == "layer.1.ffn" or unit == "layer.0.experts",
}


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("cut", CUTS)
def test_streamed_equals_not_streamed(model: Layers, cut: str) -> None:
    program, tensors = model.build()
    where = {unit: "CUDA0" for unit in program.units if CUTS[cut](unit)}
    plain = logits(program, tensors, where)
    assert_alike(logits(program, tensors, where, prompt_from=FROM), plain)


def test_two_gpus(driver) -> None:
    driver.set(devices=2)
    program, tensors = DENSE.build()
    where = {"layer.1.attn": "CUDA0", "layer.2.attn": "CUDA1", "head": "CUDA1"}
    assert [len(s.streams) for s in planned(program, where, 2, prompt_from=FROM).segments] == [0, 2, 1]
    assert_alike(logits(program, tensors, where, 2, prompt_from=FROM), logits(program, tensors, where, 2))


def test_each_weight_is_streamed_once_a_long_batch_and_never_for_a_short_one(driver) -> None:
    program, tensors = DENSE.build()
    where = {unit: "CUDA0" for unit in program.units if unit.startswith("layer.2") or unit == "head"}

    def bytes_up(prompt_from: int) -> list[tuple[int, int, dict[str, int]]]:
        with running(program, tensors, where, prompt_from=prompt_from) as r:
            s, found = sequences(r.plan), []
            for part in PARTS:
                driver.reset()
                r.executor.run(s.batch(part))
                used = driver.counters()
                found.append((used["bytes_h2d"], used["bytes_d2h"], used["kernels"]))
            return found

    plain, streamed = bytes_up(0), bytes_up(FROM)
    weights = sum(tensors[name].n_bytes for i in (0, 1) for name in (f"{i}.gate.weight", f"{i}.up.weight", f"{i}.down.weight"))
    rows = 20 * 4 * DENSE.n_embd
    for index in (0, 2):
        assert streamed[index][0] - plain[index][0] == weights + rows, "layer 0's rows cross to the GPU and back; layer 1's do anyway"
        assert streamed[index][1] - plain[index][1] == rows
    assert [streamed[index] for index in (1, 3)] == [plain[index] for index in (1, 3)]


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_allocated_equals_ledger(driver, model: Layers) -> None:
    program, tensors = model.build()
    where = {unit: "CUDA0" for unit in program.units if unit.startswith("layer.1") and unit.endswith("attn")}
    plan = planned(program, where, prompt_from=FROM)
    assert plan.ledger.total("CUDA0", "stream") > 0
    with running(program, tensors, where, prompt_from=FROM) as r:
        arena = sum(plan.ledger.total("CUDA0", purpose) for purpose in ("weights", "kv", "scratch", "stream"))
        assert driver.counters()["used"][0] == arena
        pinned = [e.pinned_bytes for e in r.executor._executors if not e.in_host_memory]
        assert sum(pinned) == plan.ledger.total("CPU", "staging") > 16 << 20
        before, s = driver.counters(), sequences(r.plan)
        driver.ready()
        for part in PARTS:
            r.executor.run(s.batch(part))
        driver.ready(False)
        after = driver.counters()
        assert after["after_ready"] == 0
        assert (after["used"], after["pinned"]) == (before["used"], before["pinned"])


def test_matrices_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    program, tensors = DENSE.build()
    where = {unit: "CUDA0" for unit in program.units if unit.endswith("attn")}
    plain = logits(program, tensors, where)
    monkeypatch.setattr(CudaDevice, "piece_bytes", 1024)
    assert tensors["0.gate.weight"].n_bytes > 5 * 1024
    assert_alike(logits(program, tensors, where, prompt_from=FROM), plain)


def test_weights_are_read_from_their_private_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the CPU's matrices have moved to huge pages, the file is not read again."""
    monkeypatch.setattr(residency, "available_bytes", lambda: 1 << 60)
    program, tensors = DENSE.build()
    slow = Slow(tensors)
    with running(program, slow, {"layer.1.attn": "CUDA0"}, prompt_from=FROM, copy_weights=True) as r:
        batch = sequences(r.plan).batch(PARTS[0])
        want = r.executor.run(batch).copy()
        r.executor.settle()
        slow.problem = "the file was read"
        assert np.array_equal(r.executor.run(batch), want)


def test_off_is_the_plan_of_before() -> None:
    program, _ = DENSE.build()
    where = {"layer.2.attn": "CUDA0", "layer.2.ffn": "CUDA0", "head": "CUDA0"}
    plain, streamed = planned(program, where), planned(program, where, prompt_from=FROM)
    assert not plain.prompt_stages
    assert plain.stages == streamed.stages
    assert [s.lowered for s in plain.segments] == [s.lowered for s in streamed.segments]
    assert not any(s.streams or s.prompt.steps for s in plain.segments)


def test_together_equals_alone() -> None:
    """Two prompts in a batch that is streamed, each in one that is not."""
    program, tensors = DENSE.build()
    where = {unit: "CUDA0" for unit in program.units if unit.endswith("attn")}
    with running(program, tensors, where, n_seqs=2, n_ctx=256, prompt_from=FROM) as r:
        s = sequences(r.plan)
        both = r.executor.run(s.batch([(0, 0, IDS[:10]), (1, 0, IDS[30:45])])).copy()
        alone = [r.executor.run(s.batch([(i, 0, ids)])).copy() for i, ids in enumerate((IDS[:10], IDS[30:45]))]
    assert_alike([both], [np.concatenate(alone)])


class Slow(dict):
    """Weights whose reading takes its time once `seconds` is set, or fails."""

    seconds = 0.0
    problem = ""

    def __init__(self, tensors) -> None:
        super().__init__({name: _Slow(self, tensor) for name, tensor in tensors.items()})


class _Slow:
    def __init__(self, owner: Slow, tensor) -> None:
        self._owner, self._tensor = owner, tensor

    def __getattr__(self, name: str):
        return getattr(self._tensor, name)

    def read(self, start: int, target: memoryview) -> None:
        time.sleep(self._owner.seconds)
        if self._owner.problem:
            raise GgrunError(self._owner.problem)
        self._tensor.read(start, target)


def test_an_abort_while_weights_come(driver) -> None:
    program, tensors = DENSE.build()
    slow = Slow(tensors)
    where = {unit: "CUDA0" for unit in program.units if unit.endswith("attn")}
    with running(program, slow, where, prompt_from=FROM) as r:
        batch = sequences(r.plan).batch(PARTS[0])
        want = r.executor.run(batch).copy()
        slow.seconds = 0.05
        for delay in (0.0, 0.06, 0.2):
            aborted: list[float] = []

            def abort(aborted: list[float] = aborted) -> None:
                aborted.append(time.perf_counter())
                r.executor.abort()

            timer = threading.Timer(delay, abort)
            timer.start()
            with pytest.raises(Cancelled):
                r.executor.run(batch)
            assert time.perf_counter() - aborted[0] < 0.2
        slow.seconds = 0.0
        assert np.array_equal(r.executor.run(batch), want)


def test_a_file_that_cannot_be_read_any_more() -> None:
    program, tensors = DENSE.build()
    slow = Slow(tensors)
    with running(program, slow, {"layer.1.attn": "CUDA0"}, prompt_from=FROM) as r:
        batch = sequences(r.plan).batch(PARTS[0])
        want = r.executor.run(batch).copy()
        slow.problem = "cut short"
        with pytest.raises(GgrunError, match="cut short"):
            r.executor.run(batch)
        slow.problem = ""
        assert np.array_equal(r.executor.run(batch), want)


def test_through_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model, its last layer on the GPU: long prompts are streamed, and the answer is the same as without."""
    monkeypatch.setattr(Cost, "prompt_from", lambda self, where, streamed: FROM)
    monkeypatch.setattr(Cost, "streaming", lambda self, where, streamed, n_tokens, depth: 1e-6)
    texts = []
    for on in (True, False):
        with Engine.open(n_ctx=256, n_ubatch=32, placement=read_pins(n_gpu_layers="2", op_offload=on)) as engine:
            assert bool(engine.plan.prompt_stages) is on
            assert any("weights streamed" in note for note in engine.plan.notes) is on
            prompt = engine.tokenizer.encode("What does len do? It returns the number of items of a container. " * 3)[:40]
            texts.append(engine.submit(prompt, Sampling(temperature=0), n_predict=3).wait().text)
    assert texts[0] == texts[1]


def test_stages_wait_for_no_more_than_they_need() -> None:
    """A unit's matrices are a stage of their own; norms and additions, also those fused with a neighbour's, wait for nothing."""
    program, _ = DENSE.build()
    where = {unit: "CUDA0" for unit in program.units if not unit.endswith("ffn")}
    plan = planned(program, where, prompt_from=FROM)
    gpu = next(s for s in plan.segments if s.device == "CUDA0")
    assert [stream.half for stream in gpu.streams] == [0, 1, 0]
    assert gpu.stream_bytes == 2 * gpu.half_bytes
    seen = [stage.stream for stage in plan.prompt_stages]
    assert [index for index in seen if index >= 0] == [0, 1, 2]
    for stage in plan.prompt_stages:
        steps = plan.segments[stage.segment].steps[stage.first : stage.last]
        brought = {name for stream in gpu.streams for name in stream.weights}
        assert (stage.stream >= 0) == any(name in brought for step in steps for name in step.weights)
