"""scripts/bench_rivals.py without an engine: what is measured again, what an interrupted run finds, and what the table says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ggrun.errors import GgrunError
from scripts.rivals import environments
from scripts.rivals.matrix import BESIDE, DEFAULT, GROUPS, Setting, shortened
from scripts.rivals.report import BEGIN, END, SHARE, TARGETS, page_with, table, verdict, with_shares
from scripts.rivals.results import OURS, Result, Store
from scripts.rivals.speed import undisturbed, worth_repeating

ABOUT = {"machine": "m, 2 cores", "ggrun": "abc"}
QUIET, BUSY = "tg64", "tg64" + BESIDE
REPACK, MAPPED = str(DEFAULT), str(Setting(False, "auto"))


def result(group: str, test: str, ours: list[float], unit: str = "t/s", **theirs: list[float]) -> Result:
    names = {"repack": REPACK, "mapped": MAPPED}
    return Result(group, test, "1B Q4_K_M", 2, unit, {OURS: ours} | {names[k]: v for k, v in theirs.items()}, "2026-11-21T10:00:00+00:00")


def test_an_interrupted_run_finds_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "results.jsonl"
    Store(path, ABOUT).add(result("depth", "pp512", [3.0, 1.0]))
    with path.open("a") as file:
        file.write('{"about": {"machine"')  # cut in the middle of a line
    again = Store(path, ABOUT)
    assert list(again.results) == [("depth", "pp512")]
    again.add(result("depth", "tg128", [1.0]))
    assert set(Store(path, ABOUT).results) == {("depth", "pp512"), ("depth", "tg128")}
    assert Store(path, ABOUT | {"ggrun": "def"}).results == {}
    again.forget("depth")
    assert again.results == {}


def test_the_newest_result_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.jsonl", ABOUT)
    for value in 1.0, 2.0:
        store.add(result("depth", "pp512", [value]))
    assert Store(tmp_path / "r.jsonl", ABOUT).results["depth", "pp512"].middle(OURS) == 2
    assert len([json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]) == 2


def test_settings_far_behind_are_not_measured_again() -> None:
    samples = {OURS: [1.0], REPACK: [50.0], MAPPED: [80.0, 100.0], "near": [10.0, 86.0], "far": [84.0]}
    assert worth_repeating(samples) == {OURS, REPACK, MAPPED, "near"}


def test_runs_beside_other_programs_do_not_count() -> None:
    assert undisturbed([(5.0, 0.4), (50.0, 0.02), (48.0, 0.1)]) == [50.0, 48.0]
    assert undisturbed([(5.0, 0.4), (6.0, 1.0)]) == [5.0, 6.0]


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        (result("depth", "pp512", [390.0], repack=[150.0], mapped=[300.0]), "met"),
        (result("depth", "pp512", [389.0], repack=[150.0], mapped=[300.0]), "**not met**"),  # 1.3 times the best setting
        (result("depth", "pp512", [390.0], repack=[196.0], mapped=[100.0]), "**not met**"),  # twice the default
        (result("start", "first token, file in page cache", [0.8, 0.9, 5.0], "s", repack=[0.9]), "met"),
        (result("start", "first token, file in page cache", [0.91], "s", repack=[0.9]), "**not met**"),
        (result("start", "first token, empty kernel cache", [16.0], "s"), "**not met**"),
        (result("depth", "pp2048", [1.0], repack=[2.0]), ""),
    ],
)
def test_targets(measured: Result, met: str) -> None:
    assert verdict(measured)[1] == met


def test_the_table_has_medians_spread_ratios_and_verdicts() -> None:
    listed = [
        result("depth", "pp512", [500.0, 390.0, 420.0], repack=[150.0, 140.0, 160.0], mapped=[300.0]),
        result("busy", QUIET, [50.0], repack=[40.0]),
        result("busy", BUSY, [31.0], repack=[10.0]),
    ]
    text = table({one.key: one for one in listed}, ["busy", "depth"], ABOUT)
    assert "machine: m, 2 cores; ggrun: abc; date: 2026-11-21." in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| 1B")]
    assert [row[1] for row in rows] == [QUIET, BUSY, f"{SHARE}, %", "pp512"]
    assert rows[3][2:] == ["420 (390..500)", "150 (140..160)", "2.80", f"300 {MAPPED}", "1.40", "2x default, 1.3x best", "met |"]
    assert rows[2][2:4] == ["62", "25"]
    assert "Targets met: 3 of 3." in text


def test_every_target_is_measured() -> None:
    tested = {(group.name, name) for group in GROUPS for name, _, _ in group.tests} | {("busy", SHARE)}
    assert {key for key in TARGETS if not key[0].startswith(("start", "memory"))} <= tested


def test_lengths_of_the_runs() -> None:
    short = [group for group in map(shortened, GROUPS) if group]
    assert sum(group.minutes for group in GROUPS) < 45
    assert sum(group.minutes for group in short) < 15
    assert any(case.name == "tg128 @ d4096" for group in short for case in group.cases)


def test_contexts_hold_what_is_run_in_them() -> None:
    for group in GROUPS:
        for case in group.cases:
            assert group.n_ctx >= case.n_ctx
            assert [case.n_depth for case in group.cases] == sorted(case.n_depth for case in group.cases)


def test_shares_need_the_quiet_figure() -> None:
    busy = result("busy", BUSY, [31.0], repack=[10.0])
    assert with_shares({busy.key: busy}) == [busy]


def test_pages_keep_what_is_around_the_table() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    assert page_with(page, "new\n") == f"before\n{BEGIN}new\n{END}after\n"


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "home", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GgrunError, match=r"cmake is missing; install it"):
        environments.rival_python("native", print)
