"""Speeds of models on this GPU through `ggrun bench` itself, beside what `ggrun plan` predicted, and the time to a first token."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """Flags of one plan whose prediction is compared with what it gives."""

    name: str
    flags: tuple[str, ...]


PLANS = (
    Plan("all on the GPU", ("-ngl", "all")),
    Plan("half the layers", ("-ngl", "17")),
    Plan("a quarter", ("-ngl", "9")),
    Plan("ffn of 16 layers on the CPU", ("-ngl", "all", "-ncffn", "16")),
    Plan("half, nothing streamed", ("-ngl", "17", "--no-op-offload")),
)

SMALL_PLANS = (Plan("all on the GPU", ("-ngl", "all")), Plan("half the layers", ("-ngl", "3")))


def ggrun(*words: str, limit: float = 300) -> str:
    """Its stdout. RuntimeError with its last words when it fails."""
    done = subprocess.run([sys.executable, "-m", "ggrun", *words], capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"ggrun {' '.join(words)}: {done.stderr.strip()[-400:]}")
    return done.stdout


def bench(path: Path, *flags: str) -> list[dict[str, Any]]:
    """Rows of `ggrun bench -o json`."""
    rows: list[dict[str, Any]] = json.loads(ggrun("bench", str(path), "-o", "json", *flags))
    return rows


def speeds(path: Path, tests: Sequence[str]) -> str:
    """A Markdown table of medians with the least and the most."""
    lines = ["| model | test | median t/s | least - most |", "|---|---|---:|---:|"]
    for row in bench(path, "-ngl", "all", *tests):
        samples = row["samples_ts"]
        parallel = f" x{row['n_parallel']}" if row.get("n_parallel", 1) > 1 else ""
        kind = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}{parallel}"
        test = kind + (f" @ d{row['n_depth']}" if row["n_depth"] else "")
        lines.append(f"| {path.stem} | {test} | {median(samples):.1f} | {min(samples):.1f} - {max(samples):.1f} |")
    return "\n".join(lines)


def predictions(path: Path, plans: Sequence[Plan], repetitions: int, small: bool = False) -> str:
    """A Markdown table: predicted and measured speeds of a prompt and of an answer, for each plan."""
    n_prompt, n_gen, n_ctx = (16, 2, 64) if small else (512, 32, 2048)
    lines = [f"| plan | predicted pp, tg | measured pp{n_prompt}, tg{n_gen} | measured / predicted |", "|---|---:|---:|---:|"]
    for plan in plans:
        said = json.loads(ggrun("plan", str(path), "-c", str(n_ctx), "--json", *plan.flags))["prediction"]
        rows = bench(path, "-p", str(n_prompt), "-n", str(n_gen), "-r", str(repetitions), *plan.flags)
        pp, tg = (median(row["samples_ts"]) for row in rows)
        ratios = f"{pp / said['prompt']:.2f}, {tg / said['answer']:.2f}"
        what = f"{plan.name} (`{' '.join(plan.flags)}`)"
        lines.append(f"| {what} | {said['prompt']:.0f}, {said['answer']:.1f} | {pp:.0f}, {tg:.1f} | {ratios} |")
    return "\n".join(lines)


def first_token(path: Path) -> str:
    """Seconds from the start of a process to its end after one token, and the prompt's own time, with the file in the page cache."""
    times = []
    for _ in range(3):
        begin = perf_counter()
        out = ggrun("run", str(path), "-ngl", "all", "-c", "2048", "-n", "1", "--temp", "0", "-no-cnv", "-p", "Once upon a time", "--json")
        times.append(perf_counter() - begin)
    timings = json.loads(out).get("timings", {})
    prompt = timings.get("prompt_ms", 0.0)
    return f"{path.stem}: process start to end with one token {median(times):.2f} s; the prompt itself {prompt:.1f} ms"


