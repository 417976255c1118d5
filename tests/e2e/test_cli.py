"""The command line as it is typed, on the embedded model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import EMBEDDED, REPO
from tests.e2e.command import environment, ggrun

QUESTION = "What does os.path.join do?"


def test_run_prints_the_completion_and_nothing_else() -> None:
    done = ggrun("run", "-p", QUESTION, "--temp", "0", "-n", "24")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    report = json.loads(ggrun("run", "-p", QUESTION, "--temp", "0", "-n", "24", "--json").stdout)
    assert report["text"] == done.stdout
    assert report["model"] == "embedded"
    assert report["finish_reason"] in ("stop", "length")
    assert report["timings"]["predicted_n"] == len(report["ids"]) <= 24
    assert report["timings"]["prompt_n"] == report["n_prompt"] > 5


@pytest.mark.parametrize("flags", [["-t", "1"], ["-t", "2", "-ub", "8"], ["-np", "2", "-b", "16"]])
def test_same_seed_same_answer_however_it_is_computed(flags: list[str]) -> None:
    common = ["run", "-p", QUESTION, "-s", "42", "--temp", "1.5", "--top-k", "0", "-n", "32", "--json", "--ignore-eos"]
    first, second = (json.loads(ggrun(*common, *more).stdout) for more in ([], flags))
    assert first["ids"] == second["ids"]
    assert first["seed"] == second["seed"] == 42


def test_without_a_seed_answers_differ_and_can_be_repeated() -> None:
    common = ["run", "-p", QUESTION, "--temp", "2", "--top-k", "0", "--min-p", "0", "-n", "40", "--json", "--ignore-eos"]
    first, second = (json.loads(ggrun(*common).stdout) for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["ids"] != second["ids"]
    assert json.loads(ggrun(*common, "-s", str(first["seed"])).stdout)["ids"] == first["ids"]


def test_stop_words_and_limits() -> None:
    whole = json.loads(ggrun("run", "-p", QUESTION, "--temp", "0", "-n", "24", "--json").stdout)["text"]
    word = whole.split()[3]
    cut = json.loads(ggrun("run", "-p", QUESTION, "--temp", "0", "-n", "24", "--json", "-r", word).stdout)
    assert cut["text"] == whole[: whole.index(word)]
    assert (cut["finish_reason"], cut["stop_word"]) == ("stop", word)
    assert ggrun("run", "-p", QUESTION, "-n", "0").stdout == ""


def test_a_piped_question_is_answered_on_stdout_alone() -> None:
    done = ggrun("chat", "--temp", "0", "-n", "24", piped=QUESTION + "\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stdout == ggrun("run", "--temp", "0", "-n", "24", piped=QUESTION).stdout.rstrip("\n") + "\n"
    assert "using the embedded model" in done.stderr
    assert "t/s" in done.stderr
    assert "Traceback" not in done.stderr


def test_ids_logits_and_the_first_token_agree(tmp_path: Path) -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    tokenized = ggrun("tokenize", "--ids", "--parse-special", prompt)
    ids = json.loads(tokenized.stdout)
    assert ids
    scores = {}
    for executor in ("cpu", "reference"):
        done = ggrun("logits", "--tokens", ",".join(map(str, ids)), "--out", tmp_path / f"{executor}.npy", "--executor", executor)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        scores[executor] = np.load(tmp_path / f"{executor}.npy")
        assert scores[executor].dtype == np.float32
        assert len(scores[executor]) == len(ids)
    error = np.square(scores["cpu"] - scores["reference"]).sum() / np.square(scores["reference"]).sum()
    assert error < 1e-3
    greedy = json.loads(ggrun("run", "-p", prompt, "-no-cnv", "--temp", "0", "-n", "1", "--json").stdout)
    assert greedy["ids"] == [int(scores["cpu"][-1].argmax())]
    np.save(tmp_path / "ids.npy", np.array(ids))
    assert ggrun("logits", "--tokens", tmp_path / "ids.npy", "--out", tmp_path / "again.npy", "-t", "1").returncode == 0
    assert np.array_equal(np.load(tmp_path / "again.npy"), scores["cpu"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "1,999999999"], "outside the model's vocabulary"),
        (["--tokens", "1,-1"], "outside the model's vocabulary"),
        (["--tokens", ",".join("1" * 50), "-c", "32"], "the context holds 32"),
        (["--tokens", ""], "the prompt is empty"),
        (["--tokens", "1", "--executor", "cuda"], "no CUDA executor"),
    ],
)
def test_logits_that_cannot_be(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = ggrun("logits", *arguments, "--out", tmp_path / "l.npy")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "l.npy").exists()


def test_an_overlong_prompt_is_refused_and_a_full_context_is_said() -> None:
    long = ggrun("run", "-p", "word " * 100, "-c", "64")
    assert (long.returncode, long.stdout) == (1, "")
    assert "the context holds 64" in long.stderr.splitlines()[-1]
    full = ggrun("run", "-p", QUESTION, "-c", "64", "--ignore-eos", "--json")
    assert full.returncode == 0
    report = json.loads(full.stdout)
    assert report["finish_reason"] == "context_full"
    assert report["n_prompt"] + len(report["ids"]) == 64
    assert "the context of 64 tokens is full" in full.stderr
    shifted = ggrun("run", "-p", QUESTION, "-c", "64", "--ignore-eos", "--json", "--on-overflow", "shift", "-n", "150")
    assert len(json.loads(shifted.stdout)["ids"]) == 150
    assert "were forgotten on the way" in shifted.stderr


def test_plan_shows_what_would_be_taken() -> None:
    done = ggrun("plan", "-c", "1024")
    assert done.returncode == 0, done.stderr
    for part in ("layer.0-", "head", "weights", "kv", "scratch", "total", "1024 tokens of context"):
        assert part in done.stdout
    plan = json.loads(ggrun("plan", "-c", "1024", "--json").stdout)
    assert plan["total_bytes"] == sum(line["n_bytes"] for line in plan["ledger"])
    refused = ggrun("plan", "-c", "1000000000")
    assert refused.returncode == 1
    assert "the largest context that fits is" in refused.stderr


def test_trace_compares_every_buffer() -> None:
    rows = json.loads(ggrun("trace", "--json").stdout)
    assert {"embed", "linear", "rope", "attention", "glu", "take_rows"} <= {row["kind"] for row in rows}
    assert max(row["nmse"] for row in rows) < 1e-2
    program = ggrun("trace", "--program").stdout
    assert program.startswith("embed:\n")
    assert "layer.0.attn:" in program


def test_a_named_model_brings_its_settings(tmp_path: Path) -> None:
    model = EMBEDDED
    (tmp_path / "models.toml").write_text(f'[models.doc]\npath = "{model}"\nn_ctx = 96\nseed = 9\ntemperature = 0\n')
    report = json.loads(ggrun("run", "doc", "-p", QUESTION, "-n", "4", "--json", folder=tmp_path).stdout)
    assert (report["model"], report["seed"]) == (str(model), 9)
    assert json.loads(ggrun("plan", "-m", "doc", "--json", folder=tmp_path).stdout)["n_ctx"] == 96


@pytest.mark.parametrize("command", ["chat", "run", "bench", "show", "plan", "tokenize", "logits", "trace"])
def test_files_that_are_no_models(command: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"MZ\x90" + bytes(100))
    more = {"tokenize": ["hi"], "logits": ["--tokens", "1", "--out", "l.npy"], "run": ["-p", "hi"], "chat": ["-p", "hi"]}.get(command, [])
    for name, said in (("x.gguf", "x.gguf"), ("missing.gguf", "there is no file missing.gguf"), (".", "is a folder")):
        done = ggrun(command, name, *more, folder=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/full", 1, "error: No space left on device"),
        ("<&-", 1, "error: the prompt is empty"),
        ("-p hi -n 2 >&-", 0, ""),
        ("-p hi -n 2 2>&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirected: str, code: int, said: str) -> None:
    path = os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))
    line = f"echo hi | {sys.executable} -m ggrun run {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment(PYTHONPATH=path), timeout=120)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_output_that_is_not_unicode() -> None:
    more = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-m", "ggrun", "tokenize", "--no-bos", "héllo"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout or "\\xc3" in done.stdout


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ggrun", "run", "-p", QUESTION, "--ignore-eos", "-n", "400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))),
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 141
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_ctrl_c_ends_a_run_with_what_it_wrote() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ggrun", "run", "-p", QUESTION, "--ignore-eos", "--on-overflow", "shift"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))),
    ) as process:
        process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
        assert process.returncode == 130
    assert rest
    assert b"Traceback" not in said
