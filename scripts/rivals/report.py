"""The markdown table: figures side by side, ratios of medians, and the targets they are held to. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .matrix import BESIDE, DEFAULT
from .processes import BEYOND, COLD_KERNELS, WARM
from .results import OURS, Result

BEGIN, END = "<!-- written by scripts/bench_rivals.py -->\n", "<!-- end of the written part -->\n"
SHARE = "share kept beside a busy process"


@dataclass(frozen=True, slots=True)
class Target:
    """At least so many times the rival's default and its best setting; or a limit of our figure: most time or memory, least share."""

    default: float | None = None
    best: float | None = None
    limit: float | None = None


DEEP_PROMPT, DEEP_TOKENS = Target(best=2.2), Target(best=1.5)
TARGETS = {
    ("depth", "pp512"): Target(default=2.0, best=1.3),
    ("depth", "tg128"): Target(best=1.1),
    ("depth", "pp512 @ d4096"): DEEP_PROMPT,
    ("depth", "tg128 @ d4096"): DEEP_TOKENS,
    ("depth", "pp512 @ d16384"): DEEP_PROMPT,
    ("depth", "tg128 @ d16384"): DEEP_TOKENS,
    ("sequences", "tg32 x8"): Target(default=2.5),
    ("busy", "tg64" + BESIDE): Target(default=1.6),
    ("busy", SHARE): Target(limit=60),
    ("start", WARM): Target(best=1.0),
    ("start", COLD_KERNELS): Target(limit=15),
    ("memory, 150k tokens", BEYOND): Target(limit=350),
    ("Q8_0", "pp512"): Target(default=3.0),
    ("Q8_0", "tg32"): Target(default=1.4),
    ("Q6_K", "pp512"): Target(default=2.0, best=1.3),
    ("avx2", "pp512"): Target(default=1.2),
    ("avx2", "tg128"): Target(default=1.0),
}  # fmt: skip
SMALLER_IS_BETTER = {"s", "MB"}


def with_shares(results: Mapping[tuple[str, str], Result]) -> list[Result]:
    """The results, and after the busy one the share of its quiet figure that each engine kept, in percent."""
    listed = []
    for key, result in results.items():
        listed.append(result)
        quiet = results.get((key[0], key[1].removesuffix(BESIDE)))
        if quiet and quiet != result:
            kept = {name: [100 * value / quiet.middle(name) for value in values] for name, values in result.samples.items()}
            listed.append(replace(result, test=SHARE, unit="%", samples=kept))
    return listed


def ratio(result: Result, engine: str) -> float:
    """How many times better we are: of medians, more than 1 when ahead."""
    ours, theirs = result.middle(OURS), result.middle(engine)
    return theirs / ours if result.unit in SMALLER_IS_BETTER else ours / theirs


def figure(result: Result, engine: str) -> str:
    """Median and, where there are several, the lowest and highest."""
    values = result.samples[engine]
    form = ".2f" if result.unit == "s" else ".0f" if result.unit in ("MB", "%") or min(values) >= 100 else ".1f"
    spread = f" ({min(values):{form}}..{max(values):{form}})" if len(values) > 1 else ""
    return f"{result.middle(engine):{form}}{spread}"


def verdict(result: Result) -> tuple[str, str]:
    """(the target, whether it is met); empty where there is none."""
    target = TARGETS.get((result.group, result.test))
    if target is None:
        return "", ""
    smaller = result.unit in SMALLER_IS_BETTER
    said, met = [], True
    if target.limit is not None:
        ours = result.middle(OURS)
        said.append(f"{'at most' if smaller else 'at least'} {target.limit:g} {result.unit}")
        met = ours <= target.limit if smaller else ours >= target.limit
    if target.default is not None:
        said.append(f"{target.default:g}x default")
        met = met and ratio(result, str(DEFAULT)) >= target.default
    if target.best is not None:
        said.append(f"{target.best:g}x best")
        met = met and ratio(result, result.best_rival(smaller)) >= target.best
    return ", ".join(said), "met" if met else "**not met**"


def row(result: Result) -> str:
    rivals = [name for name in result.samples if name != OURS]
    cells = ["", "", "", ""]
    if rivals:
        best = result.best_rival(result.unit in SMALLER_IS_BETTER)
        cells[0], cells[1] = figure(result, str(DEFAULT)), f"{ratio(result, str(DEFAULT)):.2f}"
        if best != str(DEFAULT):
            cells[2], cells[3] = f"{figure(result, best)} {best}", f"{ratio(result, best):.2f}"
    unit = "" if result.unit == "t/s" else f", {result.unit}"
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}{', AVX2 only' if result.group == 'avx2' else ''}"
    return f"| {' | '.join((f'{result.file}, {threads}', result.test + unit, figure(result, OURS), *cells, *verdict(result)))} |"


def table(results: Mapping[tuple[str, str], Result], order: Iterable[str], about: Mapping[str, object]) -> str:
    """All of it, groups in the given order, with what it was measured on and when."""
    places = {name: i for i, name in enumerate(order)}
    listed = sorted(with_shares(results), key=lambda result: places[result.group])
    dates = sorted(result.date[:10] for result in listed) or [""]
    head = [f"{what}: {value}" for what, value in about.items()] + [f"date: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"]
    verdicts = [verdict(result)[1] for result in listed]
    lines = [
        "; ".join(head) + ".",
        "",
        "| file | test (t/s unless said) | ggrun | llama.cpp, default | ratio | llama.cpp, its best setting | ratio | target | |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(row, listed),
        "",
        f"Targets met: {verdicts.count('met')} of {sum(map(bool, verdicts))}.",
    ]
    return "\n".join(lines) + "\n"


def page_with(page: str, part: str) -> str:
    """The page with its written part replaced."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + part + END + rest.partition(END)[2]
