"""`ggrun bench` as it is typed, on the embedded model: every format, its tests, and Ctrl-C."""

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EMBEDDED, REPO
from tests.e2e.command import environment, ggrun

SMALL = ["bench", "-p", "40", "-n", "4", "-r", "2", "-ub", "16"]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """A first run tells that it compiles; the runs that are looked at have nothing to tell."""
    ggrun(*SMALL)


def rows(*more: str) -> list[dict[str, object]]:
    done = ggrun(*SMALL, *more, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_table() -> None:
    done = ggrun(*SMALL, "-pg", "8,2", "-d", "0,33", "-npl", "1,3", "-m", str(EMBEDDED))
    assert done.returncode == 0, done.stderr
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    assert table[0] == ["model", "size", "params", "backend", "threads", "n_ubatch", "test", "t/s"]
    tests = ["pp40", "tg4", "tg4 x3", "pp8+tg2"]
    assert [row[-2] for row in table[2:]] == [*tests, *(f"{test} @ d33" for test in tests)]
    for row in table[2:]:
        mean, _, deviation = row[-1].partition(" ± ")
        assert float(mean) > 0
        assert float(deviation) >= 0
    assert done.stderr == "", "no live line where there is no terminal"


def test_formats() -> None:
    made = rows("-t", "1")
    assert [(row["n_prompt"], row["n_gen"], row["n_threads"], len(row["samples_ns"])) for row in made] == [(40, 0, 1, 2), (0, 4, 1, 2)]
    done = ggrun(*SMALL, "-t", "1", "-o", "csv", "-oe", "sql")
    assert [row["n_prompt"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["40", "0"]
    database = sqlite3.connect(":memory:")
    database.executescript(done.stderr.removeprefix("using the embedded model; name a GGUF file to use another\n"))
    assert database.execute("SELECT n_gen, n_ubatch FROM llama_bench").fetchall() == [(0, 16), (4, 16)]
    lines = ggrun(*SMALL, "-t", "1", "-o", "jsonl").stdout.splitlines()
    assert [set(json.loads(line)) for line in lines] == [set(made[0])] * 2


def test_matrix_of_settings_and_models(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(f'[models.doc]\npath = "{EMBEDDED}"\nn_threads = 1\n')
    done = ggrun("bench", "-m", f"doc,{EMBEDDED}", "-p", "8-16+8", "-n", "0", "-b", "4,8", "-r", "1", "-o", "jsonl", folder=tmp_path)
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["n_batch"], row["n_prompt"]) for row in made] == [(4, 8), (4, 16), (8, 8), (8, 16)] * 2
    assert {row["n_threads"] for row in made[:4]} == {1}
    assert {row["model_filename"] for row in made} == {str(EMBEDDED)}


def test_sweep() -> None:
    done = ggrun(*SMALL, "--sweep", "-d", "0-64+32")
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0]] == ["PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s"]
    assert [[int(cell) for cell in line[:3]] for line in lines[2:]] == [[40, 4, 0], [40, 4, 32], [40, 4, 64]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-d", "16000000", "-npl", "1024"], 1, " @ d16000000 does not fit: "),
        (["-p", "many"], 1, "-p 'many' is neither a number nor a range"),
        (["-pg", "512"], 1, "-pg '512' is not a prompt's and an answer's length"),
        (["-p", "0", "-n", "0"], 1, "there is nothing to measure"),
        (["-ctk", "q9_9"], 1, "-ctk q9_9 is not supported"),
        (["-fa", "off"], 1, "-fa off: attention is always fused here"),
        (["-lm", "magic"], 1, "-lm magic is no load mode"),
        (["-ngl", "some"], 1, "-ngl some is neither a number nor auto nor all"),
        (["-r", "0"], 1, "-r 0 is out of range"),
        (["--delay", "-1"], 1, "--delay -1 is out of range"),
        (["--sweep", "-n", "1,2"], 1, "--sweep measures one prompt length"),
        (["--plot", "speed.gif"], 1, "--plot"),
        (["-o", "xml"], 2, "'xml' is not one of 'md', 'csv'"),
        (["-m", f"{EMBEDDED},missing.gguf"], 1, "there is no file missing.gguf"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_and_no_table(arguments: list[str], code: int, said: str) -> None:
    done = ggrun("bench", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["md", "json"])
def test_ctrl_c_keeps_what_is_done(form: str) -> None:
    command = [sys.executable, "-m", "ggrun", "bench", "-p", "8", "-n", "50000", "-r", "1", "-oe", "jsonl", "-o", form]
    path = os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(PYTHONPATH=path), **pipes) as process:
        while not process.stderr.readline().startswith("{"):  # the first test is over
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "stopped: 1 of 2 tests are done\n"
    if form == "json":
        assert [row["n_prompt"] for row in json.loads(out)] == [8]
    else:
        assert out.count("pp8") == 1
        assert "build: " in out
