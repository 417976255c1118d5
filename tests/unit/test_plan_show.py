"""`ggrun plan` for described machines: the picture, the JSON, what is refused and how; on files of true size whose weights are holes."""

import json
from pathlib import Path

import pytest

from ggrun.cli.app import main
from ggrun.engine import places
from tests.plan_machines import GIB, sparse_file


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_file("llama-3.1-8b", tmp_path_factory.mktemp("models") / "llama-3.1-8b.gguf")


@pytest.fixture(scope="module")
def llama_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_file("llama-2-7b", tmp_path_factory.mktemp("models") / "llama-2-7b.gguf")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No speeds measured before, a wide screen, and no memory bandwidth to wait for."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("ggrun.runtime.cpu.bandwidth.read_bandwidth", lambda n_threads: 10e9)


def plan(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, arguments)])
    return stopped.value.code


SIX = ("--vram", "6GiB", "--ram", "16GiB")


def test_the_six_gigabyte_case_as_a_person_sees_it(llama_3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(llama_3, "-ngl", 20, "-c", 32768, *SIX) == 0
    out = capsys.readouterr().out
    assert "CUDA0 a described card, 8.6: 5." in out
    assert "-ngl 20 of 33: the head, layers 13-31 on CUDA0; the rest on the CPU" in out
    for words in (
        "layer.0-12.attn",
        "layer.13-31.ffn",
        "one more layer",
        "-ngl 21",
        "q8_0 KV",
        "half the context",
        "predicted: ",
        "2,552,627,200",
    ):
        assert words in out, words
    assert any(set(line) <= set("█▓▒▚▞·") and len(line) == 120 for line in out.splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_wider_than_the_screen(
    llama_3: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert plan(llama_3, "--vram", "6GiB,8GiB", "--ram", "16GiB") == 0
    drawn = [line for line in capsys.readouterr().out.splitlines() if line and line[0] in "█▓▒▚▞·┏┃┡│└├"]
    assert drawn
    assert max(map(len, drawn)) <= width


def test_json_adds_up(llama_3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(llama_3, "-ngl", 20, "-c", 32768, "--json", *SIX) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert (report["n_ctx"], report["n_gpu_layers"], report["available_bytes"]) == (32768, 20, 16 * GIB)
    assert report["total_bytes"] == sum(line["n_bytes"] for line in report["ledger"])
    for device in report["devices"]:
        assert device["used_bytes"] == sum(line["n_bytes"] for line in report["ledger"] if line["device"] == device["device"])
        assert device["used_bytes"] <= device["limit_bytes"]
    assert [stage["device"] for stage in report["stages"]] == ["CPU", "CUDA0"]
    assert [take["from"] for take in report["stages"][1]["takes"]] == ["CPU"]
    offload = report["op_offload"]
    assert offload["units"] == {f"layer.{i}.ffn": "CUDA0" for i in range(13)}
    assert any(f"prompts of {offload['from_tokens']} tokens or more: the ffn of layers 0-12 runs on CUDA0" in n for n in report["notes"])
    assert {"bytes_per_token", "read_bandwidth", "tokens_per_second_at_most", "load_mode", "notes", "units"} <= set(report)
    more = next(row for row in report["what_if"] if row["what"] == "one more layer")
    assert more["fits"] is True
    assert more["used"]["CUDA0"] > report["devices"][1]["used_bytes"]
    assert more["answer"] > report["prediction"]["answer"] > report["prediction"]["answer_full"] > 0


def test_what_does_not_fit_is_drawn_and_the_commands_that_do_are_printed(llama_2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(llama_2, "-ngl", 20, "-c", 32768, *SIX) == 1
    out, err = capsys.readouterr()
    assert "too much" in out
    assert "!!!!" in out
    commands = [line.strip() for line in out.splitlines() if line.startswith("  ggrun chat ")]
    assert commands[0] == f"ggrun chat {llama_2} -ngl 20 -c 32768 -ctk q4_0 -ctv q4_0"
    assert err.startswith("error: -ngl 20 -c 32768 takes ")
    assert err.count("\n") == 1
    for command in commands:  # each of them is a plan that fits
        assert plan(*command.split()[2:], "--json", *SIX) == 0
        assert json.loads(capsys.readouterr().out)["fits"] is True
    assert plan(llama_2, "-ngl", 20, "-c", 32768, "--json", *SIX) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is False
    assert report["nearest"] == commands


def test_a_context_too_large_for_the_cpu_alone_is_drawn_too(llama_3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(llama_3, "-c", 131072, "--ram", "8GiB") == 1
    out, err = capsys.readouterr()
    assert "too much" in out
    assert "the largest context that fits is" in err


def test_the_ngl_sentence_is_about_this_machine_only(llama_3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(llama_3, "-ngl", 20, "-c", 4096, *SIX) == 0
    assert "no CUDA device" not in capsys.readouterr().err
    assert plan("-ngl", 20) == 0
    assert capsys.readouterr().err.count("no CUDA device") == (not places.gpus())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vram", "6"], "--vram '6' is not a size"),
        (["--ram", "much"], "--ram 'much' is not a size"),
        (["--vram", "6GiB", "--gpu-arch", "ampere"], "--gpu-arch ampere is no compute capability"),
        (["--vram", "6GiB", "--gpu-arch", "35"], "compute capability 6.0 and later, not 3.5"),
    ],
)
def test_machines_that_cannot_be(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*arguments) == 1
    assert said in capsys.readouterr().err


def test_compute_capabilities_are_written_either_way(llama_3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for arch in ("89", "8.9", "sm_89"):
        assert plan(llama_3, "-c", 4096, "--json", "--vram", "6GiB", "--ram", "16GiB", "--gpu-arch", arch) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1] == reports[2]


def test_a_shared_pool_is_planned_as_serve_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("-c", 4096, "-np", 4, "--kv-tokens", -1, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_ctx"], report["n_parallel"], report["kv_tokens"]) == (4096, 4, 4096)
    assert plan("-c", 2048, "-np", 4, "--kv-tokens", 4096) == 0
    shown = capsys.readouterr().out
    assert "2048 tokens of context x 4 (4096 shared)" in shown
    assert "KV cache, 4096 tokens shared by 4 sequences" in shown
    assert "-c 1024 --kv-tokens 1024" not in shown
    assert "-c 2048 --kv-tokens 2048" in shown  # half the context
    assert plan("-c", 2048, "--kv-tokens", 1000) != 0
    assert "--kv-tokens 1000 is less than one conversation may grow to, -c 2048" in capsys.readouterr().err
