"""`ggrun tune`: measures this machine once, so that plans predict from its own speeds."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ggrun.cli.options import JsonFlag
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.plan.machine import Speeds


def tune(
    n_threads: Annotated[int, typer.Option("-t", "--threads", metavar="N", help="threads", show_default="-1: every core")] = -1,
    json_output: JsonFlag = False,
) -> None:
    """Measure how fast this machine is, in seconds, and keep it for `ggrun plan` and for choosing what runs where."""
    from ggrun.cli.screen import Screen
    from ggrun.engine.tuning import tune as measured

    screen = Screen()
    with screen.progress() as progress:
        try:
            machine, path, skipped = measured(progress, n_threads)
        except OSError as error:
            raise GgrunError(f"what was measured cannot be kept: {error.filename}: {error.strerror}") from None
    if json_output:
        print(json.dumps({"file": str(path), **asdict(machine)}))
        return
    _show({"CPU": machine.cpu, **machine.gpus})
    for sentence in skipped:
        screen.note(sentence)
    screen.note(f"kept in {path}")


_COPIES = (  # the first of every processor
    ("copies by one thread", "GB/s", 1e9, "copy"),
    ("copies within its memory", "GB/s", 1e9, "within"),
    ("copies to it", "GB/s", 1e9, "to_device"),
    ("copies from it", "GB/s", 1e9, "from_device"),
    ("one crossing", "us", 1e-6, "latency"),
    ("start of a stage", "us", 1e-6, "start"),
    ("driver's memory", "MiB", 1 << 20, "driver_bytes"),
)


def _show(devices: "dict[str, Speeds]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", *devices)
    speeds = list(devices.values())
    table.add_row("reads memory", *(f"{s.read / 1e9:.1f} GB/s" for s in speeds))
    for kind, what in (("q8_k", "products, Q4_K"), ("q8_0", "products, Q8_0"), ("f32", "products, F16")):
        table.add_row(what, *(f"{s.flops[kind] / 1e9:.0f} GFLOP/s" for s in speeds))
    table.add_row("attention", *(f"{s.attention / 1e9:.0f} GFLOP/s" for s in speeds))
    table.add_row("one step", *(f"{s.step * 1e6:.2f} us" for s in speeds))
    rows = _COPIES if len(speeds) > 1 else _COPIES[:1]
    for what, unit, scale, field in rows:
        table.add_row(what, *(f"{value / scale:.1f} {unit}" if (value := getattr(s, field)) else "" for s in speeds))
    Console(highlight=False).print(table)
