"""A plan as a person sees it at a glance: a bar for each device, then tables of units, of the ledger, and of what could be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggrun.plan.describe import unit_rows
from ggrun.plan.ledger import human
from ggrun.plan.planner import Plan

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ggrun.plan.whatif import Alternative

# purpose -> what it is called, its colour, and the character it is drawn with, which tells it apart where there is no colour
PURPOSES = {
    "weights": ("weights", "blue", "█"),
    "kv": ("KV cache", "green", "▓"),
    "scratch": ("scratch", "yellow", "▒"),
    "staging": ("staging", "cyan", "▚"),
    "stream": ("streamed", "yellow", "░"),
    "driver": ("driver", "magenta", "▞"),
    "cache": ("prompts set aside", "cyan", "▤"),
    "process": ("process", "magenta", "▞"),
}
FREE, OVER = ("free", "bright_black", "·"), ("too much", "red", "!")


def show_bars(console: Console, plan: Plan) -> None:
    """A bar for each device that the plan uses: what takes how much of the memory that may be taken."""
    from rich.text import Text

    for room in plan.devices:
        used = plan.ledger.total(room.device)
        free = room.limit_bytes - used
        parts = [(style, plan.ledger.total(room.device, purpose)) for purpose, style in PURPOSES.items()]  # type: ignore[arg-type]
        parts = [part for part in parts if part[1]]
        title = Text(f"{room.device} ", style="bold")
        title.append(f"{room.what}: " if room.device != "CPU" else "", style="")
        title.append(f"{human(used)} of {human(room.limit_bytes)}", style="bold red" if free < 0 else "bold")
        title.append("" if free >= 0 else f", {human(-free)} too much", style="bold red")
        console.print(title)
        drawn = [*parts, (FREE, free)] if free > 0 else _cut(parts, room.limit_bytes, -free)
        console.print(_bar(drawn, max(20, console.width)))
        console.print(_legend([*parts, *([(FREE, free)] if free > 0 else [])], console.width))


def _cut(parts: Sequence[tuple[tuple[str, str, str], int]], limit: int, over: int) -> list[tuple[tuple[str, str, str], int]]:
    """The parts up to the limit, and what is beyond it."""
    result, left = [], limit
    for style, n_bytes in parts:
        result.append((style, min(left, n_bytes)))
        left -= min(left, n_bytes)
    return [*(part for part in result if part[1]), *([(OVER, over)] if over else [])]


def _bar(parts: Sequence[tuple[tuple[str, str, str], int]], width: int) -> Text:
    """Cells in proportion to bytes; what is there at all gets one."""
    from rich.text import Text

    total = sum(n_bytes for _, n_bytes in parts) or 1
    cells = [max(1, round(n_bytes * width / total)) for _, n_bytes in parts]
    if cells:
        cells[max(range(len(cells)), key=lambda i: cells[i])] += width - sum(cells)
    bar = Text(no_wrap=True)
    for ((_, colour, character), _), n in zip(parts, cells):
        bar.append(character * n, style=colour)
    return bar


def _legend(parts: Sequence[tuple[tuple[str, str, str], int]], width: int) -> Text:
    from rich.text import Text

    legend, line = Text(), 0
    for (name, colour, character), n_bytes in parts:
        words = f" {name} {human(n_bytes)}"
        if line and line + len(words) + 3 > width:
            legend.append("\n")
            line = 0
        legend.append("  " if line else "")
        legend.append(character, style=colour)
        legend.append(words)
        line += len(words) + 3
    return legend


def show_units(console: Console, plan: Plan) -> None:
    """Units, where they run, with which kernels, and their bytes."""
    from rich.table import Table

    units = Table("unit", "device", "kernels")
    for name in ("weights", "KV"):
        units.add_column(name, justify="right", no_wrap=True)
    for row in unit_rows(plan):
        units.add_row(row.unit, row.device, ", ".join(row.kernels), human(row.weight_bytes), human(row.kv_bytes) if row.kv_bytes else "")
    console.print(units)


def show_ledger(console: Console, plan: Plan) -> None:
    """Every line to the byte, and what each device holds in all."""
    from rich.table import Table

    ledger = Table("device", "purpose", "what", show_footer=True)
    ledger.columns[0].footer = "total"
    ledger.add_column("bytes", justify="right", no_wrap=True, footer=f"{plan.ledger.total():,}")
    ledger.add_column("", justify="right", no_wrap=True, footer=human(plan.ledger.total()))
    devices = list(dict.fromkeys(line.device for line in plan.ledger.lines))
    for device in devices:
        for line in plan.ledger.lines:
            if line.device == device:
                ledger.add_row(device, line.purpose, line.what, f"{line.n_bytes:,}", human(line.n_bytes))
        if len(devices) > 1:
            total = plan.ledger.total(device)
            ledger.add_row(device, "", "in all", f"{total:,}", human(total), style="bold", end_section=True)
    console.print(ledger)


def show_alternatives(console: Console, title: str, plan: Plan, rows: Sequence[Alternative]) -> None:
    """One line for each, beside what the plan has."""
    from rich.table import Table

    devices = [room.device for room in plan.devices]
    several = len(devices) > 1
    if console.width < 100 and len(devices) > 2:
        devices = devices[1:]
    table = Table(title)
    for device in devices:
        table.add_column(device, justify="right", no_wrap=True)
    if several:
        table.add_column("-ngl", justify="right")
    for name in ("prompt t/s", "answer t/s"):
        table.add_column(name, justify="right")
    table.columns[0].no_wrap = True
    for row in rows:
        cells = [human(row.used.get(device, 0)) for device in devices]
        layers = ["" if row.layers is None else str(row.layers)] if several else []
        speeds = [speed(row.prompt), speed(row.answer)] if row.fits else ["does not", "fit"]
        table.add_row(f"{row.what}\n[dim]{row.flags}[/dim]", *cells, *layers, *speeds, style="" if row.fits else "red")
    console.print(table)


def speed(tokens: float) -> str:
    """Two digits say what a prediction knows."""
    digits = 0 if tokens >= 10 else 1
    return f"{tokens:.{digits}f}"
