"""Runs a group's cases: one worker for each engine and way of loading, measured in turns, A B A B, until the time of a case is over.

Knows: workers and their requests. Must not know: what the figures are compared with.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from time import monotonic

import psutil

from ggrun.bench.matrix import Case

from .environments import Say, home, rival_python
from .matrix import DEFAULT, FLASH, Group
from .results import OURS, Result
from .worker import Worker

HERE = Path(__file__).resolve().parent
LEAST_ROUNDS, MOST_ROUNDS = 3, 7
OVERTIME = 3  # even the least rounds stop after that many times the seconds of a case
BEHIND = 0.85  # a setting whose highest figure is that far behind the rival's highest is not asked again
TIER = {"native": {}, "avx2": {"GGRUN_CPU_TIER": "avx2"}}
DISTURBED = 0.1  # cores that other programs use, beyond which a run does not count if there are better ones
SPIN = "while True: pass"


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that wants a core all the time and may run on any."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Contestant:
    """An engine in one setting: a worker and what it must be told first."""

    def __init__(self, name: str, worker: Worker, flash: int, group: Group) -> None:
        self.name, self._worker, self._group = name, worker, group
        self._context = {"n_ctx": group.n_ctx, "n_parallel": group.n_parallel, "flash": flash}
        layout = "flash" if flash else "plain"
        self._state = home() / "states" / f"{group.file.replace(' ', '-')}-{group.build}-{group.deepest}-{layout}"

    def prepare(self, case: Case) -> None:
        """Fill the context up to the case's depth, and run once what does not count."""
        self._worker.ask("context", **self._context)
        self._worker.ask("warm", case=asdict(case), deepest=self._group.deepest, state=str(self._state))

    def run(self, case: Case) -> tuple[float, float]:
        """(tokens a second, cores that others used meanwhile) of one run."""
        self._worker.ask("context", **self._context)
        everyone, itself, start = system_seconds(), self._worker.cpu_seconds(), monotonic()
        seconds = self._worker.ask("run", case=asdict(case))["seconds"]
        others = system_seconds() - everyone - (self._worker.cpu_seconds() - itself)
        return case.n_tokens / seconds, others / (monotonic() - start)


def system_seconds() -> float:
    """Seconds of processor time that were used on this machine, by anyone, or taken from it by its host."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


@contextmanager
def contestants(group: Group, model: Path, say: Say) -> Iterator[list[Contestant]]:
    """ggrun and the rival's settings, each way of loading in a process of its own that stays until the group is over."""
    python = rival_python(group.build, say)
    logs = home() / "logs"
    with ExitStack() as stack:
        command: list[str | Path] = [sys.executable, HERE / "ggrun_worker.py", model, str(group.threads)]
        ours = stack.enter_context(Worker(command, logs / "ggrun.log", TIER[group.build]))
        workers: dict[bool, Worker] = {}
        listed = [Contestant(OURS, ours, 0, group)]
        for setting in group.settings:
            if setting.repack not in workers:
                mode = "repack" if setting.repack else "mapped"
                command = [python, HERE / "llama_worker.py", model, str(group.threads), mode]
                workers[setting.repack] = stack.enter_context(Worker(command, logs / f"llama-{mode}.log"))
            listed.append(Contestant(str(setting), workers[setting.repack], FLASH[setting.flash], group))
        yield listed


def worth_repeating(samples: Mapping[str, list[float]]) -> set[str]:
    """Engines to measure again: ours, the rival's default, and settings that could still be its best."""
    best = max(max(values) for name, values in samples.items() if name != OURS)
    return {name for name, values in samples.items() if name in (OURS, str(DEFAULT)) or max(values) >= BEHIND * best}


def undisturbed(runs: Sequence[tuple[float, float]]) -> list[float]:
    """The figures of runs during which others used little; all of them where there are none such."""
    alone = [speed for speed, others in runs if others <= DISTURBED]
    return alone or [speed for speed, _ in runs]


def rounds(case: Case, busy: bool, who: Sequence[Contestant], seconds: float, say: Say) -> dict[str, list[float]]:
    """Figures of every contestant in turns, a round started while time is left; at least one of each."""
    runs: dict[str, list[tuple[float, float]]] = {one.name: [] for one in who}
    for one in who:
        one.prepare(case)
    start = monotonic()
    with busy_process() if busy else nullcontext():
        for turn in range(MOST_ROUNDS):
            figures = {name: undisturbed(values) for name, values in runs.items()}
            again = worth_repeating(figures) if turn > 1 else set(runs)  # one slow run may have been the machine's fault
            for one in who:
                if one.name in again:
                    speed, others = one.run(case)
                    runs[one.name].append((speed, others - busy))  # what the busy process takes is meant
            late = monotonic() - start - seconds
            fewest = min(sum(others <= DISTURBED for _, others in runs[name]) for name in again)
            if late > 0 and (fewest >= LEAST_ROUNDS or late > (OVERTIME - 1) * seconds):
                break
    disturbed = sum(others > DISTURBED for values in runs.values() for _, others in values)
    if disturbed:
        say(f"  other programs were busy during {disturbed} of {sum(map(len, runs.values()))} runs")
    return {name: undisturbed(values) for name, values in runs.items()}


def measure(group: Group, model: Path, done: set[str], say: Say, keep: Callable[[Result], None]) -> None:
    """Measure the tests of a group that are not done yet, and hand on each result as soon as it is there."""
    wanted = [test for test in group.tests if test[0] not in done]
    if not wanted:
        return
    promising: dict[tuple[bool, int], set[str]] = {}  # a longer prompt is run in the best setting for a short one there
    with contestants(group, model, say) as who:
        for name, case, busy in wanted:
            like = case.n_prompt > 0, case.n_depth
            samples = rounds(case, busy, [one for one in who if one.name in promising.get(like, {one.name})], group.seconds, say)
            result = Result(group.name, name, group.file, group.threads, "t/s", samples, now())
            if case.n_prompt:
                promising[like] = {OURS, str(DEFAULT), result.best_rival()}
            keep(result)
