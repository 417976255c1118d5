"""Every output format, read back by the tool it is meant for, and the columns of the tables."""

import csv
import io
import json
import sqlite3
from collections.abc import Sequence

import pytest

from ggrun.bench.formats import COLUMNS, FORMATS
from ggrun.bench.matrix import Case
from ggrun.bench.result import Result
from tests.unit.bench_results import MODEL, result

RESULTS = (result(Case(512, 0), 10**9, 10**9), result(Case(0, 128, 4096), 2 * 10**9, 4 * 10**9, n_threads=1))


def text(name: str, results: Sequence[Result]) -> str:
    writer = FORMATS[name]([r.entry for r in results])
    return writer.begin() + "".join(writer.row(r) for r in results) + writer.end()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown() -> None:
    head, rule, first, second, *end = text("md", RESULTS).splitlines()
    assert cells(head) == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert cells(first) == ["llama 1B Q4_K - Medium", "769.62 MiB", "1.24 B", "CPU", "2", "pp512", "512.00 ± 0.00"]
    assert cells(second) == ["llama 1B Q4_K - Medium", "769.62 MiB", "1.24 B", "CPU", "1", "tg128 @ d4096", "48.00 ± 22.63"]
    assert [cell[-1] for cell in cells(rule)] == ["-", ":", ":", "-", ":", ":", ":"]
    assert len({len(line) for line in (head, rule, first, second)}) == 1, "aligned"
    assert end[0] == ""
    assert end[1].startswith("build: ggrun ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_batch", 64), ("n_ubatch", 64), ("type_k", "q8_0"), ("type_v", "q4_0"), ("n_cpu_moe", 4), ("load_mode", "none")],
)
def test_settings_have_a_column_where_they_are_not_the_default(setting: str, value: object) -> None:
    usual, other = result(Case(1, 0)), result(Case(1, 0), **{setting: value})
    for results, shown in (([usual, usual], False), ([usual, other], True), ([other, other], True)):
        lines = text("md", results).splitlines()
        assert (setting in cells(lines[0])) == shown
        assert (str(value) in cells(lines[3])) == shown
    assert cells(text("md", [other]).splitlines()[0])[-3:] == [setting, "test", "t/s"]


def test_every_setting_but_threads_has_a_column() -> None:
    from dataclasses import fields

    from ggrun.bench.matrix import Settings

    assert {field.name for field in fields(Settings)} - {c.heading for c in COLUMNS} == {"n_threads", "n_gpu_layers"}


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(text("csv", RESULTS))))
    assert [list(row) for row in rows] == [list(RESULTS[0].row())] * 2
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"], row["flash_attn"]) for row in rows] == [
        ("512", "0", "0", "1"),
        ("0", "128", "4096", "1"),
    ]
    assert float(rows[1]["avg_ts"]) == pytest.approx(48.0)
    assert rows[0]["model_filename"] == MODEL.filename


@pytest.mark.parametrize("n", [0, 1, 2])
def test_json(n: int) -> None:
    assert json.loads(text("json", RESULTS[:n])) == [_json(r) for r in RESULTS[:n]]
    assert [json.loads(line) for line in text("jsonl", RESULTS[:n]).splitlines()] == [_json(r) for r in RESULTS[:n]]


def _json(made: Result) -> dict[str, object]:
    return made.row() | {name: list(samples) for name, samples in made.samples().items()}


def test_sql() -> None:
    database = sqlite3.connect(":memory:")
    for _ in range(2):  # a second run is added to the first
        database.executescript(text("sql", RESULTS))
    rows = database.execute("SELECT model_filename, n_gen, n_depth, avg_ts, typeof(n_gen), typeof(avg_ts) FROM llama_bench").fetchall()
    assert rows[:2] == [(MODEL.filename, 0, 0, 512.0, "integer", "real"), (MODEL.filename, 128, 4096, 48.0, "integer", "real")]
    assert rows[2:] == rows[:2]


def test_sweep() -> None:
    results = [result(case, n_threads=n) for n in (1, 2) for depth in (0, 512) for case in (Case(512, 0, depth), Case(0, 128, depth))]
    above, blank, head, rule, *rows = text("sweep", results).splitlines()
    assert above == "model llama 1B Q4_K - Medium, size 769.62 MiB, params 1.24 B, backend CPU"
    assert blank == ""
    assert cells(head) == ["threads", "PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s"]
    assert [cells(row) for row in rows] == [
        [threads, "512", "128", depth, "1.500", "384.00", "1.500", "96.00"] for threads in "12" for depth in ("0", "512")
    ]
    assert len({len(line) for line in (head, rule, *rows)}) == 1
