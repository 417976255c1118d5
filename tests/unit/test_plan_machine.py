"""Speeds: guesses for every card, files that are written, read, merged, and forgiven; predictions from them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ggrun.cli.app import main
from ggrun.plan.cost import Cost, unit_costs
from ggrun.plan.machine import ACTIVATIONS, Machine, guessed_cpu, guessed_gpu, read_machine, write_machine
from ggrun.plan.pins import Pins
from ggrun.plan.placement import Choice, place
from tests.plan_machines import GIB, machine, mixture, model

LLAMA = model("llama-3.1-8b")[1]


@pytest.mark.parametrize("cc", [50, 60, 61, 70, 75, 80, 86, 87, 89, 90, 100, 120, 121])
@pytest.mark.parametrize("gib", [2, 6, 12, 24, 141])
def test_every_card_has_a_guess(cc: int, gib: int) -> None:
    speeds = guessed_gpu(cc, gib * GIB)
    assert speeds.read > 1e11
    assert set(speeds.flops) == set(ACTIVATIONS)
    assert not speeds.measured


def test_guesses_grow_with_the_card() -> None:
    assert guessed_gpu(86, 24 * GIB).read > guessed_gpu(86, 6 * GIB).read
    assert guessed_gpu(90, 80 * GIB).flops["q8_k"] > guessed_gpu(75, 8 * GIB).flops["q8_k"]


def test_speeds_are_kept_and_cards_that_are_away_are_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "speeds.json"
    assert read_machine(path, 4) == Machine(guessed_cpu(4))
    first = Machine(guessed_cpu(2), {"one": guessed_gpu(86, GIB)})
    write_machine(path, first)
    assert read_machine(path, 4) == first
    write_machine(path, Machine(guessed_cpu(8), {"two": guessed_gpu(90, GIB)}))
    assert read_machine(path, 4) == Machine(guessed_cpu(8), {"one": guessed_gpu(86, GIB), "two": guessed_gpu(90, GIB)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cpu": 3}', '{"cpu": {"read": "fast"}}', '{"gpus": [1]}', "\x00"])
def test_a_file_that_is_no_speeds_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(text)
    assert read_machine(path, 2) == Machine(guessed_cpu(2))


def test_costs_count_each_weight_and_only_the_experts_that_are_used() -> None:
    costs = unit_costs(LLAMA, "f16", "f16")
    weights = sum(w.n_bytes for name, w in LLAMA.weights.items() if name not in ("token_embd.weight", "rope_freqs.weight"))
    ropes = 2 * 32 * LLAMA.weights["rope_freqs.weight"].n_bytes
    row = LLAMA.weights["token_embd.weight"].n_bytes / 128256
    assert sum(cost.token_bytes for cost in costs.values()) == pytest.approx(weights + ropes + row)
    assert costs["layer.3.attn"].kv_bytes == 2 * 8 * 128 * 2
    assert unit_costs(LLAMA, "q8_0", "q8_0")["layer.3.attn"].kv_bytes == 2 * 8 * 128 * 8.5 / 8
    experts = unit_costs(mixture()[1], "f16", "f16")["layer.0.experts"]
    assert 3.5 < experts.all_bytes / experts.token_bytes < 4.1  # 2 of 8


def test_a_token_takes_the_time_of_its_bytes() -> None:
    cost = Cost(LLAMA, machine((24,)), Machine(guessed_cpu(4)), "f16", "f16", 512)
    alone = place(LLAMA, Pins(), Choice(0))
    everything = sum(c.token_bytes for c in unit_costs(LLAMA, "f16", "f16").values())
    assert 1 / cost.predict(alone, 4096).answer == pytest.approx(everything / guessed_cpu(4).read, rel=0.1)
    speeds = [cost.predict(place(LLAMA, Pins(), Choice(n, gpus=("CUDA0",))), 4096) for n in (0, 10, 20, 33)]
    assert [s.answer for s in speeds] == sorted(s.answer for s in speeds)
    assert all(s.answer > s.answer_full for s in speeds)


def test_crossings_cost() -> None:
    cost = Cost(LLAMA, machine((24,)), Machine(guessed_cpu(4)), "f16", "f16", 512)
    once = place(LLAMA, Pins(), Choice(17, gpus=("CUDA0",)))
    often = place(LLAMA, Pins(kv_offload=False), Choice(33, gpus=("CUDA0",)))
    crossings = [sum(a != b for a, b in zip(where.values(), list(where.values())[1:])) for where in (once, often)]
    assert crossings == [1, 63]
    assert cost._cross("CPU", "CUDA0", 0) > 0
    assert cost._cross("CPU", "CPU", 1 << 20) == 0


def test_every_stage_on_a_gpu_takes_a_start() -> None:
    often = place(LLAMA, Pins(kv_offload=False), Choice(33, gpus=("CUDA0",)))
    slow = replace(guessed_gpu(86, 24 * GIB), start=1e-3)
    times = []
    for start in (1e-3, 0.0):
        known = Machine(guessed_cpu(4), {"card": replace(slow, start=start)})
        times.append(Cost(LLAMA, machine((24,)), known, "f16", "f16", 512).seconds(often, 1, 1))
    assert times[0] - times[1] == pytest.approx(32e-3)


def test_tune_measures_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for arguments in (["tune", "--json"], ["tune"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        out, err = capsys.readouterr()
    assert "reads memory" in out
    (file,) = (tmp_path / "ggrun").iterdir()
    assert f"kept in {file}" in err
    speeds = read_machine(file, 1).cpu
    assert speeds.measured
    assert all(rate > 1e8 for rate in (speeds.read, speeds.attention, *speeds.flops.values()))
    assert 0 < speeds.step < 1e-3
    assert json.loads(file.read_text())["cpu"]["measured"] == speeds.measured
