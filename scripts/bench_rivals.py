#!/bin/sh
""":'
# Started as a command: run again by the Python of the checkout's own environment.
. "$(dirname "$(readlink -f "$0")")/environment.sh"
environment ""
exec "$env/bin/python" "$0" "$@"

Measures ggrun beside llama.cpp on the same files and threads, in turns, and prints a table of medians, ratios and targets.

    scripts/bench_rivals.py [--quick] [--only GROUP] [--write docs/performance.md]

Builds llama-cpp-python and makes the model files in the user's cache folder on first use. What is measured is kept after each test, so
that a run that was interrupted goes on; docs/performance.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from rivals.environments import home, rival_python  # noqa: E402
from rivals.files import SHARED_VOCABULARY, model_file  # noqa: E402
from rivals.matrix import GROUPS, Group, shortened  # noqa: E402
from rivals.processes import answer, measure_memory, measure_start  # noqa: E402
from rivals.report import page_with, table, verdict  # noqa: E402
from rivals.results import Result, Store  # noqa: E402
from rivals.speed import measure  # noqa: E402

from ggrun.errors import GgrunError  # noqa: E402


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The checkout's commit, marked when files differ from it; ggrun's version where there is no git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("ggrun")
    return done.stdout.strip()


def about(quick: bool) -> dict[str, object]:
    """What a result depends on: machine, versions and length of the run."""
    rival = json.loads(answer([rival_python("native", say), ROOT / "scripts" / "rivals" / "llama_worker.py", "-", "0", "about"], {}))
    return {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "ggrun": commit(),
        "numba": version("numba"),
        "llama.cpp": f"llama-cpp-python {rival['package']}, ggml {rival['ggml']} ({rival['commit']})",
        "run": "quick" if quick else "full",
    }


def run_group(group: Group, model: Path, store: Store) -> None:
    """Measure what the store has not of a group."""
    done = {test for name, test in store.results if name == group.name}
    measured = {"start": measure_start, "memory": measure_memory}.get(group.name.partition(",")[0])

    def keep(result: Result) -> None:
        store.add(result)
        figures = ", ".join(f"{name} {result.middle(name):.4g}" for name in result.samples)
        say(f"  {result.test}: {figures} {result.unit}  {' '.join(verdict(result))}".rstrip())

    if not measured:
        measure(group, model, done, say, keep)
    elif not done:
        measured(group, model, say, keep)


def listing(groups: list[Group]) -> str:
    lines = []
    for group in groups:
        tests = ", ".join(name for name, _, _ in group.tests)
        lines.append(f"{group.name:20} {group.file:12} {group.minutes:5.1f} min  {tests}".rstrip())
    return "\n".join([*lines, f"{'':33} {sum(group.minutes for group in groups):5.1f} min"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure ggrun beside llama.cpp on the same files and threads.")
    parser.add_argument("--quick", action="store_true", help="fewer tests, settings and rounds: under 15 minutes instead of under 45")
    parser.add_argument("--only", metavar="GROUP", action="append", help="this group alone (again for more); --list names them")
    parser.add_argument("--list", action="store_true", help="show the groups and about how long they take")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where results are kept (default: in the user's cache folder)")
    parser.add_argument("--vocab", type=Path, metavar="FILE.gguf", help="the llama files' tokenizer (default: the shared one, or made up)")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="put the table into this page, between its markers")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    groups = [short for group in GROUPS if (short := shortened(group))] if options.quick else list(GROUPS)
    if options.list:
        print(listing(groups))
        return 0
    unknown = set(options.only or ()) - {group.name for group in groups}
    if unknown:
        raise GgrunError(f"there is no group {', '.join(sorted(unknown))} in this run; choose from: {', '.join(g.name for g in groups)}")
    facts = about(options.quick)
    store = Store(options.results or home() / "results.jsonl", facts)
    vocab = options.vocab or (SHARED_VOCABULARY if SHARED_VOCABULARY.exists() else None)
    failed = 0
    for group in groups:
        if options.only and group.name not in options.only:
            continue
        if options.fresh:
            store.forget(group.name)
        say(f"{group.name}: {group.file}, about {group.minutes:g} minutes")
        try:
            run_group(group, model_file(group.file, vocab, say), store)
        except GgrunError as error:  # the other groups can still be measured
            say(f"error: {group.name}: {error}")
            failed = 1
    text = table(store.results, [group.name for group in groups], facts)
    print(text, end="")
    if options.write:
        options.write.write_text(page_with(options.write.read_text(), text))
    return failed


def guarded(run: Callable[[], int]) -> int:
    """The exit status; errors as sentences."""
    try:
        return run()
    except (GgrunError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; run it again to go on from here")
        return 130


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(arguments())))
