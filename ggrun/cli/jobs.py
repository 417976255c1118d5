"""From the flags of `ggrun bench` to what is measured, planned as a whole before anything is loaded, and then measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ggrun.bench.matrix import Case, Settings, cases, combinations, numbers, pairs
from ggrun.bench.plot import check
from ggrun.bench.result import Entry, Result, model_info
from ggrun.bench.session import fitting, opened
from ggrun.cli.bench import SWEPT, BenchOptions
from ggrun.cli.interrupt import aborting
from ggrun.cli.named import Model
from ggrun.cli.opening import chosen, settings
from ggrun.cli.options import EngineOptions
from ggrun.cli.screen import Live, Screen
from ggrun.engine.loading import Options, embedded_model
from ggrun.errors import GgrunError
from ggrun.gguf import LOAD_MODES, open_gguf

MOST_DELAY = 86400  # seconds


@dataclass(frozen=True, slots=True)
class Job:
    """Entries that share one session, and how it is opened."""

    path: Path | None
    options: Options
    entries: tuple[Entry, ...]


def jobs_of(models: Sequence[str], flags: BenchOptions, screen: Screen) -> list[Job]:
    """Everything that will run, in order. Raises GgrunError for flags that cannot be met and for the first case that does not fit."""
    if flags.repetitions < 1:
        raise GgrunError(f"-r {flags.repetitions} is out of range; a test runs at least once")
    if not 0 <= flags.delay <= MOST_DELAY:
        raise GgrunError(f"--delay {flags.delay:g} is out of range; it takes 0 to {MOST_DELAY} seconds")
    if flags.plot:
        check(flags.plot)
    wanted, combined = _cases(flags), list(combinations(_settings(flags)))
    jobs = []
    for model in _models([*models, *(flags.model_flags or [])], screen):
        with open_gguf(model.path or embedded_model()) as file:
            info = model_info(file, model.label)
        for one in combined:
            options = Options(**settings(model, _engine_options(one, flags), screen))
            for group in fitting(model.path, options, wanted):
                entries = (Entry(info, one, case, group.n_threads, group.n_gpu_layers, group.gpus) for case in group.cases)
                jobs.append(Job(model.path, options, tuple(entries)))
    return jobs


def measured(jobs: Sequence[Job], flags: BenchOptions, screen: Screen) -> Iterator[Result]:
    """Run the jobs and yield what they measured, one by one; on a terminal a line tells how far they are."""
    live, done, total = Live(screen), 0, sum(len(job.entries) for job in jobs)
    for job in jobs:
        with ExitStack() as stack:
            with screen.progress() as progress:
                session = stack.enter_context(opened(job.path, job.options, [entry.case for entry in job.entries], progress))
            stack.enter_context(aborting(session.executor.abort))
            for entry in job.entries:
                if done:
                    time.sleep(flags.delay)
                done += 1
                test_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                watch = partial(_tell, live, f"{done}/{total} {entry.model.type} {entry.case.name}")
                try:
                    samples = session.run(entry.case, flags.repetitions, not flags.no_warmup, watch)
                finally:
                    live.clear()
                for note in session.notes:
                    screen.once(note)
                yield Result(entry, test_time, tuple(samples))


def _tell(live: Live, what: str, doing: str, n_tokens: int, ns: int) -> None:
    live.show(lambda: f"{what}: {doing}" + (f", {n_tokens * 1e9 / ns:.2f} t/s" if ns else ""))


def _models(names: Sequence[str], screen: Screen) -> list[Model]:
    """The models that arguments and -m name; what names no file may be a list. None named: as in every command."""
    split = [part for name in names for part in ([name] if Path(name).expanduser().exists() else name.split(","))]
    return [chosen(name.strip() or None, None, screen) for name in split or [""]]


def _cases(flags: BenchOptions) -> tuple[Case, ...]:
    n_prompt, n_gen = numbers("-p", flags.n_prompt or ["512"], 0), numbers("-n", flags.n_gen or ["128"], 0)
    n_prompt_gen, n_parallel = pairs("-pg", flags.n_prompt_gen or []), numbers("-npl", flags.n_parallel or ["1"], 1)
    n_depth = numbers("-d", flags.n_depth or [SWEPT if flags.sweep else "0"], 0)
    pairs_only = (len(n_prompt), len(n_gen), len(n_prompt_gen), n_parallel) == (1, 1, 0, (1,)) and min(n_prompt + n_gen) > 0
    if flags.sweep and not pairs_only:
        raise GgrunError("--sweep measures one prompt length (-p) and one answer length (-n) at every depth (-d), without -pg and -npl")
    if not (wanted := cases(n_prompt, n_gen, n_prompt_gen, n_depth, n_parallel)):
        raise GgrunError("there is nothing to measure; -p, -n or -pg must name a length above 0")
    return wanted


def _settings(flags: BenchOptions) -> dict[str, Sequence[Any]]:
    """The values to try of each field of Settings; those of absent flags are left out."""
    for mode in _words(flags.flash_attn):
        if mode not in ("auto", "on", "1"):
            raise GgrunError(f"-fa {mode}: attention is always fused here; -fa takes auto, on or 1")
    for mode in _words(flags.load_mode):
        if mode not in LOAD_MODES:
            raise GgrunError(f"-lm {mode} is no load mode; there are {', '.join(LOAD_MODES)}")
    return {
        "n_batch": numbers("-b", flags.n_batch or [], 1),
        "n_ubatch": numbers("-ub", flags.n_ubatch or [], 1),
        "n_threads": numbers("-t", flags.n_threads or [], 1),
        "type_k": _words(flags.cache_type_k),
        "type_v": _words(flags.cache_type_v),
        "n_cpu_moe": numbers("-ncmoe", flags.n_cpu_moe or [], 0),
        "load_mode": _words(flags.load_mode),
        "n_gpu_layers": _words(flags.n_gpu_layers),
    }


def _words(texts: Sequence[str] | None) -> list[str]:
    """The words of comma lists, in lower case."""
    return [name.strip().lower() for text in texts or [] for name in text.split(",")]


def _engine_options(one: Settings, flags: BenchOptions) -> EngineOptions:
    """The flags that other commands would open the model with."""
    return EngineOptions(
        load_mode=one.load_mode,  # type: ignore[arg-type]  # checked by _settings
        n_threads=one.n_threads,
        n_batch=one.n_batch,
        n_ubatch=one.n_ubatch,
        n_gpu_layers=one.n_gpu_layers,
        cpu_moe=flags.cpu_moe,
        n_cpu_moe=one.n_cpu_moe if flags.n_cpu_moe else None,
        placement=flags.placement,
        cache_type_k=one.type_k,
        cache_type_v=one.type_v,
    )
