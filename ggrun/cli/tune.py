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
    for name in skipped:
        screen.note(f"{name}: this version cannot measure it; its speeds stay guesses")
    screen.note(f"kept in {path}")


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
    if len(speeds) > 1:
        table.add_row("copies to it", *(f"{s.to_device / 1e9:.1f} GB/s" if s.to_device else "" for s in speeds))
        table.add_row("copies from it", *(f"{s.from_device / 1e9:.1f} GB/s" if s.from_device else "" for s in speeds))
        table.add_row("copies by one thread", *(f"{s.copy / 1e9:.1f} GB/s" if s.copy else "" for s in speeds))
        table.add_row("one crossing", *(f"{s.latency * 1e6:.1f} us" if s.latency else "" for s in speeds))
        table.add_row("driver's memory", *(f"{s.driver_bytes / (1 << 20):.0f} MiB" if s.driver_bytes else "" for s in speeds))
    Console(highlight=False).print(table)
