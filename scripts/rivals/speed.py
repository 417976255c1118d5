"""Runs a group's cases: one worker for each engine and way of loading, measured in turns, A B A B, until the time of a case is over.

Knows: workers and their requests. Must not know: what the figures are compared with.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from time import monotonic

from .environments import Say, home, rival_python
from .matrix import DEFAULT, FLASH, N_WARM, Case, Group
from .results import OURS, Result
from .worker import Worker

HERE = Path(__file__).resolve().parent
LEAST_ROUNDS, MOST_ROUNDS = 3, 7
OVERTIME = 3  # even the least rounds stop after that many times the seconds of a case
BEHIND = 0.85  # a setting whose highest figure is that far behind the rival's highest is not asked again
TIER = {"native": {}, "avx2": {"GGRUN_CPU_TIER": "avx2"}}
SPIN = "while True: pass"


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def ids(n: int) -> list[int]:
    """The tokens both engines are given: ordinary ones of any vocabulary measured here."""
    return [100 + 17 * i % 1000 for i in range(n)]


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
        n_seqs = max(case.n_seqs for case in group.cases)
        self._context = {"n_ctx": group.n_ctx, "n_seqs": n_seqs if n_seqs > 1 else 0, "flash": flash}
        layout = "flash" if flash else "plain"
        self._state = home() / "states" / f"{group.file.replace(' ', '-')}-{group.build}-{group.deepest}-{layout}"
        self._depth = -1

    def run(self, case: Case) -> tuple[float, int | None]:
        """(tokens a second, id the prompt's logits point at) of one run; before the first at a depth, fills the context and warms up."""
        self._worker.ask("context", **self._context)
        if self._depth != case.depth:
            deepest = self._group.deepest if case.depth else 0
            self._worker.ask("fill", ids=ids(deepest), depth=case.depth, state=str(self._state))
            self._worker.ask("prompt", ids=ids(N_WARM if case.depth else 256), depth=case.depth)
            self._depth = case.depth
        more = {} if case.kind == "prompt" else {"n_seqs": case.n_seqs}
        answer = self._worker.ask(case.kind, ids=ids(case.n), depth=case.depth, **more)
        return case.n_tokens / answer["seconds"], answer.get("top")


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


def rounds(case: Case, who: list[Contestant], seconds: float, say: Say) -> dict[str, list[float]]:
    """Figures of every contestant in turns, a round started while time is left; at least one of each."""
    samples: dict[str, list[float]] = {one.name: [] for one in who}
    tops: dict[str, int | None] = {}
    start = monotonic()
    with busy_process() if case.busy else nullcontext():
        for turn in range(MOST_ROUNDS):
            again = worth_repeating(samples) if turn > 1 else set(samples)  # one slow run may have been the machine's fault
            for one in who:
                if one.name in again:
                    speed, tops[one.name] = one.run(case)
                    samples[one.name].append(speed)
            late = monotonic() - start - seconds
            if late > 0 and (turn + 1 >= LEAST_ROUNDS or late > (OVERTIME - 1) * seconds):
                break
    if len(set(tops.values())) > 1 and not case.depth:
        say(f"  the engines disagree about the likeliest token after {case}: {tops}")
    return samples


def measure(group: Group, model: Path, done: set[str], say: Say, keep: Callable[[Result], None]) -> None:
    """Measure the cases of a group that are not done yet, and hand on each result as soon as it is there."""
    wanted = [case for case in group.cases if str(case) not in done]
    if not wanted:
        return
    promising: dict[tuple[str, int], set[str]] = {}  # by kind and depth: a longer prompt is not run with what was slow on a short one
    with contestants(group, model, say) as who:
        for case in wanted:
            like = case.kind, case.depth
            samples = rounds(case, [one for one in who if one.name in promising.get(like, {one.name})], group.seconds, say)
            if case.n_seqs == 1:
                promising[like] = worth_repeating(samples)
            keep(Result(group.name, str(case), group.file, group.threads, "t/s", samples, now()))
