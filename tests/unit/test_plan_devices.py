"""Plans for a processor and GPUs: the 6 GB case at true size, what is chosen, what is refused, and with which flags it would fit."""

from dataclasses import replace

import pytest

from ggrun.errors import GgrunError
from ggrun.plan.planner import DoesNotFit, Plan, Request
from tests.plan_machines import GIB, MIB, machine, mixture, model, planned, task

LLAMA_3, LLAMA_2, MIXTURE = model("llama-3.1-8b"), model("llama-2-7b"), mixture()


def layers(plan: Plan) -> int:
    assert plan.choice is not None
    return plan.choice.n_gpu_layers


def segment(plan: Plan, device: str):  # type: ignore[no-untyped-def]
    return next(s for s in plan.segments if s.device == device)


def test_the_six_gigabyte_case() -> None:
    """Llama-3.1-8B Q4_K_M, 20 layers on the GPU and 32768 tokens: what the project is for, to the byte."""
    plan = planned(LLAMA_3, machine((6,)), 32768, n_gpu_layers="20", vram_budget="6GiB", op_offload=False)
    gpu = segment(plan, "CUDA0")
    assert gpu.units == (*(f"layer.{i}.{part}" for i in range(13, 32) for part in ("attn", "ffn")), "head")
    weights = LLAMA_3[1].weights
    mine = {name for name in weights if name in ("output.weight", "output_norm.weight", "rope_freqs.weight") or 13 <= layer_of(name) <= 31}
    assert set(gpu.weights) == mine
    assert gpu.weight_bytes == sum(-(-weights[name].n_bytes // 256) * 256 for name in mine) == plan.ledger.total("CUDA0", "weights")
    assert 2.5 < gpu.weight_bytes / GIB < 2.8
    blocks = 1 + 32768 // 32
    assert plan.shape.n_kv_blocks == blocks
    assert gpu.kv_bytes == 19 * blocks * 32 * 2 * 2 * 8 * 128 == plan.ledger.total("CUDA0", "kv")
    assert plan.ledger.total("CUDA0", "scratch") == gpu.scratch_bytes < 200 * MIB
    assert plan.ledger.total("CUDA0") == gpu.weight_bytes + gpu.kv_bytes + gpu.scratch_bytes + 300 * MIB <= 6 * GIB
    assert [(plan.segments[s.segment].device, [t.buffer for t in s.takes]) for s in plan.stages] == [
        ("CPU", []),
        ("CUDA0", [LLAMA_3[1].ops[next(i for i, op in enumerate(LLAMA_3[1].ops) if op.unit == "layer.13.attn") - 1].outputs[0]]),
    ]
    assert "-ngl 20 of 33: the head, layers 13-31 on CUDA0; the rest on the CPU" in plan.notes


def layer_of(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def test_llama_2_with_the_same_flags_is_refused_with_the_nearest_plans() -> None:
    with pytest.raises(DoesNotFit) as refused:
        planned(LLAMA_2, machine((6,)), 32768, n_gpu_layers="20")
    said = str(refused.value)
    assert said.startswith("-ngl 20 -c 32768 takes 12.13 GiB on CUDA0 (weights 2.25 GiB, KV 9.51 GiB,")
    assert "where 6.00 GiB is available; these fit: " in said
    q4, fewer, shorter = refused.value.flags
    assert q4 == ("-ngl", "20", "-c", "32768", "-ctk", "q4_0", "-ctv", "q4_0")
    assert (fewer[0], fewer[2:]) == ("-ngl", ("-c", "32768"))
    assert shorter[:3] == ("-ngl", "20", "-c")
    with pytest.raises(DoesNotFit) as roomier:
        planned(LLAMA_2, machine((8,)), 32768, n_gpu_layers="20")
    assert [flags[-1] for flags in roomier.value.flags[:2]] == ["q8_0", "q4_0"]
    # each of them fits, and is the nearest of its kind
    n = int(fewer[1])
    assert layers(planned(LLAMA_2, machine((6,)), 32768, n_gpu_layers=str(n))) == n
    with pytest.raises(DoesNotFit):
        planned(LLAMA_2, machine((6,)), 32768, n_gpu_layers=str(n + 1))
    n_ctx = int(shorter[3])
    assert planned(LLAMA_2, machine((6,)), n_ctx, n_gpu_layers="20").shape.n_ctx == n_ctx
    with pytest.raises(DoesNotFit):
        planned(LLAMA_2, machine((6,)), n_ctx + 256, n_gpu_layers="20")
    small = Request(n_threads=8, type_k="q4_0", type_v="q4_0")
    assert planned(LLAMA_2, machine((6,)), 32768, small, n_gpu_layers="20").ledger.total("CUDA0") <= 6 * GIB


def test_auto_takes_the_most_layers_that_leave_the_margin() -> None:
    plan = planned(LLAMA_3, machine((6,)), 16384, op_offload=False)
    assert plan.ledger.total("CUDA0") <= 5 * GIB
    with pytest.raises(DoesNotFit):
        planned(LLAMA_3, machine((6,)), 16384, n_gpu_layers=str(layers(plan) + 1), vram_budget="5GiB")
    tighter = planned(LLAMA_3, machine((6,)), 16384, fit_target="0", op_offload=False)
    assert layers(tighter) > layers(plan)
    assert any("(-ngl sets it)" in note for note in plan.notes)


def test_what_is_pinned_may_take_the_margin() -> None:
    plan = planned(LLAMA_3, machine((6,)), 32768, n_gpu_layers="20")
    assert 5 * GIB < plan.ledger.total("CUDA0") <= 6 * GIB


def test_everything_fits_a_large_card_with_the_embedding() -> None:
    plan = planned(LLAMA_3, machine((24,)))
    assert [s.device for s in plan.segments] == ["CUDA0"]
    assert plan.shape.n_ctx == 32768
    assert plan.ledger.total("CPU", "process") > 0
    assert plan.ledger.total("CPU", "weights") == 0
    assert len(plan.stages) == 1


def test_the_context_shrinks_for_layers_but_not_below_fitc() -> None:
    plan = planned(LLAMA_3, machine((6,)))
    assert 4096 <= plan.shape.n_ctx < 32768
    assert layers(plan) > 28
    assert any(note.startswith(f"context: {plan.shape.n_ctx} tokens of 131072 trained, so that more layers fit") for note in plan.notes)
    longer = planned(LLAMA_3, machine((6,)), fit_ctx=16384)
    assert longer.shape.n_ctx >= 16384
    assert layers(longer) < layers(plan)


def test_layers_pinned_and_the_context_chosen() -> None:
    plan = planned(LLAMA_3, machine((6,)), n_gpu_layers="33")
    assert layers(plan) == 33
    assert plan.ledger.total("CUDA0") <= 6 * GIB
    with pytest.raises(DoesNotFit, match="these fit"):
        planned(LLAMA_3, machine((3,)), n_gpu_layers="33")


def test_without_fit_nothing_is_adjusted() -> None:
    with pytest.raises(DoesNotFit, match="on CUDA0") as refused:
        planned(LLAMA_3, machine((6,)), fit="off")
    assert () in refused.value.flags  # with nothing pinned it does
    plan = planned(LLAMA_3, machine((24,)), fit="off")
    assert (layers(plan), plan.shape.n_ctx) == (33, 32768)


def test_experts_go_to_the_cpu_before_layers_do() -> None:
    plan = planned(MIXTURE, machine((0.7,)), 4096, fit_target="100")
    assert plan.choice is not None
    assert plan.choice.n_gpu_layers == 9
    assert 0 < plan.choice.n_cpu_moe < 9
    assert any(note.startswith(f"-ncmoe {plan.choice.n_cpu_moe}: ") for note in plan.notes)
    pinned = planned(MIXTURE, machine((0.7,)), 4096, n_gpu_layers="all", fit_target="100")
    assert pinned.choice is not None
    assert pinned.choice.n_cpu_moe == plan.choice.n_cpu_moe
    with pytest.raises(DoesNotFit) as refused:
        planned(MIXTURE, machine((0.7,)), 4096, n_gpu_layers="all", n_cpu_moe=0)
    assert any("-ncmoe" in flags for flags in refused.value.flags)
    everything = planned(MIXTURE, machine((1,)), 4096, n_gpu_layers="all", cpu_moe=True)
    assert sum(unit.endswith(".experts") for unit in segment(everything, "CPU").units) == 8


def test_layers_are_split_by_what_each_card_has_room_for() -> None:
    plan = planned(LLAMA_3, machine((4, 5)), 8192, n_gpu_layers="all")
    small, large = (len(segment(plan, device).units) for device in ("CUDA0", "CUDA1"))
    assert small < large
    for room in plan.rooms:
        assert plan.ledger.total(room.device) <= room.limit_bytes
    shared = planned(LLAMA_3, machine((8, 8)), 8192, n_gpu_layers="all", tensor_split="1,3")
    assert 14 < len(segment(shared, "CUDA0").units) < 20


def test_one_card_is_taken_when_all_fits_there() -> None:
    plan = planned(LLAMA_3, machine((24, 24)), 4096)
    assert [s.device for s in plan.segments] == ["CUDA0"]


def test_budgets_are_limits() -> None:
    plan = planned(LLAMA_3, machine((24,)), 4096, vram_budget="3GiB")
    assert 2.5 * GIB < plan.ledger.total("CUDA0") <= 3 * GIB
    with pytest.raises(DoesNotFit, match="on CPU .* where 1.00 GiB is available"):
        planned(LLAMA_3, machine((3,)), 4096, ram_budget="1GiB")


def test_a_cpu_too_small_is_named() -> None:
    with pytest.raises(DoesNotFit, match="on CPU"):
        planned(LLAMA_3, machine((2,), ram=2), 8192)


def test_a_negative_context_is_a_sentence() -> None:
    with pytest.raises(GgrunError, match="-c takes"):
        planned(LLAMA_3, machine(), -1)


def test_mapped_weights_may_be_larger_than_memory_when_asked() -> None:
    request = Request(n_threads=8, load_mode="mmap")
    plan = planned(LLAMA_3, machine((3,), ram=2), 4096, request)
    assert plan.ledger.total("CPU", "weights") > 2 * GIB
    assert any("from the disk" in note for note in plan.notes)


def test_predictions_prefer_the_gpu_and_know_their_worth() -> None:
    slow, fast = (planned(LLAMA_3, machine((24,)), 4096, n_gpu_layers=n).prediction for n in ("10", "30"))
    assert slow is not None
    assert fast is not None
    assert fast.answer > slow.answer > fast.answer_full / 100
    assert fast.prompt > slow.prompt
    assert not fast.measured


def test_the_copy_of_the_cpus_matrices_is_of_its_units_only() -> None:
    plan = planned(LLAMA_3, machine((6,), ram=32), 8192, Request(n_threads=8, copy_weights=True), n_gpu_layers="20")
    copy = segment(plan, "CPU").copy
    assert copy is not None
    assert {layer_of(name) for name in copy.offsets} == set(range(13))
    assert plan.ledger.total("CPU", "weights") >= copy.n_bytes


def test_tied_weights_are_counted_on_both_sides() -> None:
    tied = model("llama-3.2-1b")
    plan = planned(tied, machine((6,)), 4096, n_gpu_layers="1")
    embedding = tied[1].weights["token_embd.weight"].n_bytes
    assert "token_embd.weight" in segment(plan, "CUDA0").weights
    assert plan.ledger.total("CPU", "weights") > embedding


def test_a_task_is_solved_the_same_way_twice() -> None:
    one = task(LLAMA_3, machine((6,)), 8192)
    from ggrun.plan.solve import solve

    assert solve(one).ledger == solve(replace(one)).ledger


def test_a_pool_of_slots_is_solved_like_one_context() -> None:
    """Chosen, pinned and refused: what counts is the pool, whatever number of sequences shares it."""
    pool = Request(n_threads=8, n_seqs=4, kv_tokens=-1)
    one, four = planned(LLAMA_3, machine((8,))), planned(LLAMA_3, machine((8,)), request=pool)
    assert (four.shape.n_ctx, four.shape.kv_tokens) == (one.shape.n_ctx, one.shape.n_ctx)
    pinned = planned(LLAMA_3, machine((24,)), 8192, Request(n_threads=8, n_seqs=4, kv_tokens=32768))
    assert (pinned.shape.n_ctx, pinned.shape.kv_tokens, layers(pinned)) == (8192, 32768, 33)
    with pytest.raises(DoesNotFit) as refused:
        planned(LLAMA_2, machine((6,)), 4096, Request(n_threads=8, n_seqs=4, kv_tokens=32768), n_gpu_layers="20")
    shorter = refused.value.flags[-1]
    assert (shorter[:5], shorter[6:]) == (("-ngl", "20", "-c", "4096", "--kv-tokens"), ("-np", "4"))
    fits = planned(LLAMA_2, machine((6,)), 4096, Request(n_threads=8, n_seqs=4, kv_tokens=int(shorter[5])), n_gpu_layers="20")
    assert fits.shape.kv_tokens == int(shorter[5]) >= 4096
