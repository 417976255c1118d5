"""The flags of `ggrun bench`: what they ask for, in which order, and what is told on the way. Nothing is loaded."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import ggrun.bench.plot
from ggrun.bench.matrix import Case
from ggrun.bench.session import Group
from ggrun.cli.app import main
from ggrun.cli.bench import BenchOptions
from ggrun.cli.interrupt import aborting
from ggrun.cli.jobs import jobs_of
from ggrun.cli.screen import Live, Screen
from ggrun.engine.loading import Options
from ggrun.errors import GgrunError
from tests.conftest import EMBEDDED
from tests.unit.bench_results import result

SMALL = {"n_prompt": ["8"], "n_gen": ["0"]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Options, tuple[Case, ...]]]:
    """What the plan was asked for; a machine of two cores on which everything fits."""
    calls = []

    def fitting(path: Path, options: Options, cases: tuple[Case, ...]) -> list[Group]:
        calls.append((path, options, tuple(cases)))
        return [Group(tuple(cases), min(options.n_threads or 2, 2))]

    monkeypatch.setattr("ggrun.cli.jobs.fitting", fitting)
    monkeypatch.delenv("LLAMA_ARG_MODEL", raising=False)
    return calls


def test_defaults_are_llama_benchs(asked: list) -> None:
    (job,) = jobs_of([str(EMBEDDED)], BenchOptions(), Screen())
    assert [entry.case.name for entry in job.entries] == ["pp512", "tg128"]
    assert {entry.model.type for entry in job.entries} == {"llama 7M Q8_0"}
    options = asked[0][1]
    assert (options.n_batch, options.n_ubatch, options.n_threads, options.load_mode) == (2048, 512, 0, "auto")
    assert (BenchOptions().repetitions, BenchOptions().output, BenchOptions().output_err) == (5, "md", None)


def test_every_combination_is_a_job_in_order(asked: list) -> None:
    flags = BenchOptions(n_batch=["64", "128"], n_threads=["1-2"], load_mode=["mmap,none"], **SMALL)
    jobs = jobs_of([str(EMBEDDED)], flags, Screen())
    assert [(job.options.n_batch, job.options.n_threads, job.options.load_mode) for job in jobs] == [
        (batch, threads, mode) for batch in (64, 128) for threads in (1, 2) for mode in ("mmap", "none")
    ]
    assert [entry.settings.n_batch for job in jobs for entry in job.entries] == [64] * 4 + [128] * 4


def test_models_by_argument_flag_list_and_name(asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comma = tmp_path / "a,b.gguf"
    comma.symlink_to(EMBEDDED)
    monkeypatch.chdir(tmp_path)
    Path("models.toml").write_text(f'[models.doc]\npath = "{EMBEDDED}"\nn_threads = 1\n')
    jobs_of([str(comma)], BenchOptions(model_flags=[f"doc,{EMBEDDED}"], **SMALL), Screen())
    assert [(path, options.n_threads) for path, options, _ in asked] == [(comma, 0), (EMBEDDED, 1), (EMBEDDED, 0)]
    jobs_of([], BenchOptions(**SMALL), Screen())
    assert asked[-1][0] is None
    monkeypatch.setenv("LLAMA_ARG_MODEL", "doc")
    jobs_of([], BenchOptions(**SMALL), Screen())
    assert asked[-1][0] == EMBEDDED


def test_more_threads_than_cores_are_not_counted(asked: list) -> None:
    jobs = jobs_of([str(EMBEDDED)], BenchOptions(n_threads=["1,2,8"], **SMALL), Screen())
    assert [job.entries[0].n_threads for job in jobs] == [1, 2, 2]


@pytest.mark.parametrize(("layers", "told"), [("auto", 0), ("0", 0), ("99", 1), ("all", 1)])
def test_layers_for_a_gpu_are_answered_once(asked: list, layers: str, told: int, capsys: pytest.CaptureFixture[str]) -> None:
    jobs_of([str(EMBEDDED)], BenchOptions(n_gpu_layers=[layers], n_threads=["1,2"], n_cpu_moe=["0,4"], **SMALL), Screen())
    assert capsys.readouterr().err.count("no CUDA device") == told


def test_a_sweep_is_a_prompt_and_an_answer_at_every_depth(asked: list) -> None:
    (job,) = jobs_of([str(EMBEDDED)], BenchOptions(sweep=True), Screen())
    assert [entry.case.n_depth for entry in job.entries] == [depth for depth in range(0, 8193, 1024) for _ in range(2)]
    assert [entry.case.n_prompt for entry in job.entries] == [512, 0] * 9
    (job,) = jobs_of([str(EMBEDDED)], BenchOptions(sweep=True, n_depth=["7"]), Screen())
    assert [entry.case.name for entry in job.entries] == ["pp512 @ d7", "tg128 @ d7"]


@pytest.mark.parametrize("flags", [{"n_prompt": ["1,2"]}, {"n_gen": ["0"]}, {"n_prompt_gen": ["1,2"]}, {"n_parallel": ["2"]}])
def test_a_sweep_of_anything_else(asked: list, flags: dict[str, list[str]]) -> None:
    with pytest.raises(GgrunError, match="--sweep measures one prompt length"):
        jobs_of([str(EMBEDDED)], BenchOptions(sweep=True, **flags), Screen())
    assert not asked


def test_a_plot_that_cannot_be_is_refused_before_anything_runs(asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(plot: Path) -> str:
        with pytest.raises(GgrunError) as error:
            jobs_of([str(EMBEDDED)], BenchOptions(plot=plot), Screen())
        assert not asked
        return str(error.value)

    monkeypatch.setattr(ggrun.bench.plot, "find_spec", lambda name: None)
    assert refused(tmp_path / "x.png").startswith("--plot needs matplotlib, which is not installed")
    monkeypatch.setattr(ggrun.bench.plot, "find_spec", lambda name: object())
    assert "a name that ends in .png" in refused(tmp_path / "x.gif")
    assert "there is no folder" in refused(tmp_path / "none" / "x.png")


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    results = [result(case, n_threads=n) for n in (1, 2) for d in (0, 64) for case in (Case(8, 0, d), Case(0, 4, d, 2), Case(8, 4, d))]
    for name, begin in (("x.png", b"\x89PNG"), ("x.svg", b"<?xml")):
        ggrun.bench.plot.draw(results, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    drawn = (tmp_path / "x.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("pp8, threads 1", "tg4 x2, threads 2", "tokens of context before"))


class FakeSession:
    """Takes no time; presses Ctrl-C during the case whose number `interrupted` says."""

    interrupted = -1

    def __init__(self) -> None:
        self.executor = SimpleNamespace(abort=lambda: None)
        self.notes = ["a note of the session"]
        self.n = 0

    def run(self, case: Case, repetitions: int, warm_up: bool, watch: Callable[[str, int, int], None]) -> list[int]:
        self.n += 1
        if self.n - 1 == self.interrupted:
            raise KeyboardInterrupt
        watch(f"run 1/{repetitions}", 5, 10**9)
        return [10**9] * repetitions


@pytest.fixture
def fake(asked: list, monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    kind = type("Session", (FakeSession,), {})

    @contextmanager
    def opened(*rest: object) -> Iterator[FakeSession]:
        yield kind()

    monkeypatch.setattr("ggrun.cli.jobs.opened", opened)
    return kind


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", str(EMBEDDED), *arguments])
    return stopped.value.code


def test_notes_are_told_once(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("-t", "1,2") == 0
    out, err = capsys.readouterr()
    assert err == "a note of the session\n"
    assert out.count("tg128") == 2


def test_what_was_done_before_ctrl_c_is_written(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    fake.interrupted = 2
    assert bench("-d", "0,1", "-oe", "json") == 130
    out, err = capsys.readouterr()
    assert [test in out for test in ("pp512 ", "tg128 ", "pp512 @ d1")] == [True, True, False]
    assert out.endswith(f"\nbuild: ggrun {ggrun.__version__}\n")
    assert "stopped: 2 of 4 tests are done" in err


def test_rest_between_tests(fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[float] = []
    monkeypatch.setattr("ggrun.cli.jobs.time.sleep", rested.append)
    assert bench("--delay", "2.5", "-p", "1,2,3", "-n", "0") == 0
    assert rested == [2.5, 2.5]


def test_the_live_line_is_cut_to_the_terminal_and_held_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen, clock = Screen(), [0.0]
    screen.terminal = True
    monkeypatch.setattr("ggrun.cli.screen.monotonic", lambda: clock[0])
    monkeypatch.setattr("ggrun.cli.screen.os.get_terminal_size", lambda descriptor: os.terminal_size((10, 5)))
    live = Live(screen)
    for text in ("123456789abc", "too soon"):
        live.show(lambda text=text: text)
    clock[0] += Live.INTERVAL
    live.show(lambda: "second")
    live.clear()
    live.show(lambda: "at once")
    assert capsys.readouterr().err == "\r\x1b[K123456789\r\x1b[Ksecond\r\x1b[K\r\x1b[Kat once"


def test_where_there_is_no_terminal_there_is_no_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    live = Live(Screen())
    live.show(lambda: "never")
    live.clear()
    assert capsys.readouterr().err == ""


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


def test_ctrl_c_aborts_at_once_and_interrupts() -> None:
    aborted: list[int] = []
    with pytest.raises(KeyboardInterrupt), aborting(lambda: aborted.append(1)):
        press_ctrl_c()
    assert aborted == [1]


def test_afterwards_ctrl_c_aborts_nothing() -> None:
    aborted: list[int] = []
    with aborting(lambda: aborted.append(1)):
        pass
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert (aborted, signal.set_wakeup_fd(-1)) == ([], -1)
