"""Speed against depth as a picture. matplotlib is an extra that only this asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ggrun.bench.formats import COLUMNS
from ggrun.bench.result import Result
from ggrun.errors import GgrunError

SUFFIXES = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise GgrunError when a picture could not be written there, so that nobody measures for an hour to learn it."""
    if find_spec("matplotlib") is None:
        raise GgrunError("--plot needs matplotlib, which is not installed: pip install matplotlib")
    if path.suffix.lower() not in SUFFIXES:
        raise GgrunError(f"--plot {path}: a name that ends in {', '.join(SUFFIXES)} is needed")
    if not path.parent.is_dir():
        raise GgrunError(f"--plot {path}: there is no folder {path.parent}")


def draw(results: Sequence[Result], path: Path) -> None:
    """Prompts and answers side by side: tokens a second with their deviation, a line for each test and setting. Raises GgrunError."""
    from matplotlib.figure import Figure

    panels = {
        "prompt": [r for r in results if not r.entry.case.n_gen],
        "generation": [r for r in results if not r.entry.case.n_prompt],
        "prompt and generation": [r for r in results if r.entry.case.n_prompt and r.entry.case.n_gen],
    }
    shown = {title: some for title, some in panels.items() if some}
    figure = Figure(figsize=(6 * len(shown), 4.5), layout="constrained")
    for number, (title, some) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(1, len(shown), number)
        for label, line in _lines(some, results).items():
            line.sort(key=lambda result: result.entry.case.n_depth)
            rows = [result.row() for result in line]
            mean, deviation = ([row[key] for row in rows] for key in ("avg_ts", "stddev_ts"))
            axes.errorbar([row["n_depth"] for row in rows], mean, deviation, label=label, marker="o", capsize=3)
        axes.set(title=title, xlabel="tokens of context before", ylabel="tokens a second", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise GgrunError(f"--plot {path} cannot be written: {error.strerror or error}") from None


def _lines(some: Sequence[Result], results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by what is the same along a line: the test without its depth, and each column in which results differ."""
    differing = [c for c in COLUMNS if c.heading != "test" and len({c.value(r.entry) for r in results}) > 1]
    lines: dict[str, list[Result]] = {}
    for result in some:
        entry = result.entry
        what = (f"{c.value(entry)}" if c.left else f"{c.heading} {c.value(entry)}" for c in differing)
        lines.setdefault(", ".join([replace(entry.case, n_depth=0).name, *what]), []).append(result)
    return lines
