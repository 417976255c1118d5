"""Weights streamed to a GPU for long prompts: from how many tokens, where it goes, and that it never costs what was pinned."""

from dataclasses import replace

import pytest

from ggrun.plan.cost import LEAST_STREAMED, Cost
from ggrun.plan.machine import Machine, guessed_cpu, guessed_gpu
from ggrun.plan.pins import flags_of, read_pins
from ggrun.plan.placement import Choice, place
from ggrun.plan.planner import DoesNotFit, Plan, Request
from ggrun.plan.solve import Solver
from ggrun.plan.streaming import streamable
from tests.plan_machines import GIB, MIB, StandInGpu, machine, mixture, model, planned, task

LLAMA_3, MIXTURE = model("llama-3.1-8b"), mixture()
SIX = {"n_gpu_layers": "20", "vram_budget": "6GiB"}


def lines_of(plan: Plan) -> dict[tuple[str, str, str], int]:
    """What streaming does not change."""
    return {
        (line.device, line.purpose, line.what): line.n_bytes for line in plan.ledger.lines if line.purpose in ("kv", "driver", "process")
    }


def test_the_six_gigabyte_case_streams_the_other_layers_feed_forward() -> None:
    plan, plain = (planned(LLAMA_3, machine((6,)), 32768, op_offload=on, **SIX) for on in (True, False))
    assert plan.streamed == {f"layer.{i}.ffn": "CUDA0" for i in range(13)}
    assert f"prompts of {plan.prompt_from} tokens or more: the ffn of layers 0-12 runs on CUDA0, weights streamed" in plan.notes
    gpu = next(s for s in plan.segments if s.device == "CUDA0")
    unit = max(sum(-(-LLAMA_3[1].weights[name].n_bytes // 256) * 256 for name in s.weights) for s in gpu.streams)
    assert plan.ledger.total("CUDA0", "stream") == gpu.stream_bytes == 2 * unit
    norms = 13 * 4 * 4096
    assert plan.ledger.total("CUDA0", "weights") == plain.ledger.total("CUDA0", "weights") + norms
    assert plan.ledger.total("CPU", "staging") == plain.ledger.total("CPU", "staging") + 16 * MIB
    assert plan.ledger.total("CPU", "weights") == plain.ledger.total("CPU", "weights")
    assert plan.ledger.total("CUDA0") <= 6 * GIB
    assert lines_of(plan) == lines_of(plain)
    assert (plan.stages, plan.shape, plan.where) == (plain.stages, plain.shape, plain.where)
    assert plan.prediction is not None
    assert plain.prediction is not None
    assert plan.prediction.prompt > 1.5 * plain.prediction.prompt
    assert plan.prediction.answer == plain.prediction.answer


def test_off_streams_nothing() -> None:
    plan = planned(LLAMA_3, machine((6,)), 32768, op_offload=False, **SIX)
    assert (plan.prompt_stages, plan.prompt_from, plan.streamed) == ((), 0, {})
    assert plan.ledger.total(purpose="stream") == 0
    assert flags_of(read_pins(op_offload=False)) == ["--no-op-offload"]
    assert flags_of(read_pins()) == []


def test_it_never_costs_what_was_pinned() -> None:
    """Down to the last byte with which the plan fits there is one; streaming is given up before a layer."""
    plain = planned(LLAMA_3, machine((6,)), 32768, op_offload=False, **SIX).ledger.total("CUDA0")
    arena = planned(LLAMA_3, machine((6,)), 32768, **SIX).ledger.total("CUDA0") - plain
    for room, streams in ((plain - 1, None), (plain, False), (plain + arena - 1, False), (plain + arena, True)):
        pins = SIX | {"vram_budget": f"{room}B"}
        if streams is None:
            with pytest.raises(DoesNotFit):
                planned(LLAMA_3, machine((6,)), 32768, **pins)
            continue
        plan = planned(LLAMA_3, machine((6,)), 32768, **pins)
        assert bool(plan.streamed) is streams
        assert plan.ledger.total("CUDA0") <= room
        assert plan.choice is not None
        assert plan.choice.n_gpu_layers == 20
        assert plan.shape.n_ctx == 32768


def test_the_hosts_memory_counts_too() -> None:
    plan = planned(LLAMA_3, machine((6,)), 32768, op_offload=False, **SIX)
    ram = plan.ledger.total("CPU")
    assert not planned(LLAMA_3, machine((6,)), 32768, ram_budget=f"{ram}B", **SIX).streamed
    assert planned(LLAMA_3, machine((6,)), 32768, ram_budget=f"{ram + 16 * MIB}B", **SIX).streamed


def test_what_is_not_pinned_is_chosen_with_and_without() -> None:
    plan, plain = (planned(LLAMA_3, machine((6,)), 16384, op_offload=on) for on in (True, False))
    assert plan.prediction is not None
    assert plain.prediction is not None
    assert plan.prediction.seconds <= plain.prediction.seconds


def cost_of(program: object, copy: float, to_device: float, n_threads: int = 8, n_ubatch: int = 512) -> Cost:
    gpu = replace(guessed_gpu(86, 6 * GIB), to_device=to_device)
    cpu = replace(guessed_cpu(n_threads), copy=copy)
    return Cost(program, machine((6,)), Machine(cpu, {"card": gpu}), "f16", "f16", n_ubatch)  # type: ignore[arg-type]


def test_the_threshold_follows_the_slower_of_copying_and_the_link() -> None:
    program = LLAMA_3[1]
    where = place(program, read_pins(), Choice(20, gpus=("CUDA0",)))
    streamed = streamable(program, where)

    def least(copy: float, to_device: float, **more: int) -> int:
        return cost_of(program, copy, to_device, **more).prompt_from(where, streamed)

    assert LEAST_STREAMED <= least(50e9, 50e9) < least(50e9, 12e9) < least(50e9, 6e9) < 512
    assert least(6e9, 50e9) == pytest.approx(least(50e9, 6e9), abs=1)
    assert least(12e9, 12e9, n_threads=2) < least(12e9, 12e9, n_threads=16), "a slow processor gives up sooner"
    assert least(0.5e9, 12e9) == 0
    assert least(12e9, 12e9, n_ubatch=8) == 0
    cost = cost_of(program, 12e9, 12e9)
    n = cost.prompt_from(where, streamed)
    for tokens, wins in ((n - 1, False), (n, True), (512, True)):
        assert (cost.streaming(where, streamed, tokens, tokens / 2) < cost.seconds(where, tokens, tokens / 2)) is wins


def test_experts_take_longer_prompts_than_a_dense_layer() -> None:
    """All experts are streamed; a token multiplies with two of eight."""
    found = {}
    for name, kind in (("experts", MIXTURE), ("ffn", mixture(n_expert=0))):
        where = place(kind[1], read_pins(), Choice(9, n_cpu_moe=8, gpus=("CUDA0",)))
        if name == "ffn":
            where |= {unit: "CPU" for unit in where if unit.endswith("ffn")}
        streamed = streamable(kind[1], where)
        assert set(streamed) == {f"layer.{i}.{name}" for i in range(8)}
        found[name] = cost_of(kind[1], 12e9, 12e9).prompt_from(where, streamed)
    assert 0 < found["ffn"] < found["experts"]


def test_each_layers_weights_go_to_the_gpu_of_its_attention() -> None:
    where = place(MIXTURE[1], read_pins(cpu_moe=True), Choice(9, n_cpu_moe=8, gpus=("CUDA0", "CUDA1")))
    streamed = streamable(MIXTURE[1], where)
    assert {streamed[f"layer.{i}.experts"] == where[f"layer.{i}.attn"] for i in range(8)} == {True}
    assert set(streamed.values()) == {"CUDA0", "CUDA1"}


def test_without_a_gpu_in_the_plan_nothing_is_streamed() -> None:
    assert streamable(MIXTURE[1], dict.fromkeys(MIXTURE[1].units, "CPU")) == {}
    assert not planned(MIXTURE, machine((6,)), 4096, n_gpu_layers="0").streamed


def test_a_gpu_without_the_kernels_streams_nothing() -> None:
    from ggrun.plan.device import missing

    class Poor(StandInGpu):
        def lower(self, program, units, shape):  # type: ignore[no-untyped-def]
            if any(unit.endswith("experts") for unit in units):
                raise missing(self.name, [("expert_linear", "Q4_K")])
            return super().lower(program, units, shape)

    job = task(MIXTURE, machine((6,), gpu=Poor), 4096, Request(n_threads=8), n_gpu_layers="all", cpu_moe=True)
    plan = Solver(job).solve()
    assert plan is not None
    assert not plan.streamed
