"""`ggrun plan`: what a model would take and which kernel would run where, without loading it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import EngineOptions, JsonFlag, ModelArgument

if TYPE_CHECKING:
    from ggrun.plan.planner import Plan


def plan(
    model: ModelArgument = None, *, engine_options: EngineOptions, list_devices: ListDevicesFlag = False, json_output: JsonFlag = False
) -> None:
    """Show every byte a model would take and what would compute it; loads nothing."""
    from ggrun.cli.opening import chosen, settings
    from ggrun.cli.screen import Screen
    from ggrun.engine.loading import Options, plan_model

    screen = Screen()
    named = chosen(model, engine_options.model_flag, screen)
    planned = plan_model(named.path, Options(**settings(named, engine_options, screen)))
    try:
        if json_output:
            print(json.dumps(_report(planned.plan, named.label), ensure_ascii=False))
        else:
            _show(planned.plan, named.label)
    finally:
        planned.file.close()


def _report(plan: "Plan", model: str) -> dict[str, object]:
    """What --json prints; all sizes in bytes."""
    from ggrun.plan.describe import token_bytes, unit_rows
    from ggrun.runtime.cpu.bandwidth import read_bandwidth

    return {
        "model": model,
        "n_ctx": plan.shape.n_ctx,
        "n_parallel": plan.shape.n_seqs,
        "n_ubatch": plan.shape.n_ubatch,
        "n_threads": plan.shape.n_threads,
        "load_mode": plan.load_mode,
        "available_bytes": plan.available_bytes,
        "total_bytes": plan.ledger.total(),
        "bytes_per_token": token_bytes(plan),
        "read_bandwidth": (bandwidth := read_bandwidth(plan.shape.n_threads)),
        "tokens_per_second_at_most": bandwidth / token_bytes(plan),
        "ledger": [asdict(line) for line in plan.ledger.lines],
        "units": [asdict(row) for row in unit_rows(plan)],
        "notes": list(plan.notes),
    }


def _show(plan: "Plan", model: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from ggrun.plan.describe import token_bytes, unit_rows
    from ggrun.plan.ledger import human
    from ggrun.runtime.cpu.bandwidth import read_bandwidth

    console = Console(highlight=False)
    shape = plan.shape
    title = f"{model}: {shape.n_ctx} tokens of context x {shape.n_seqs}, -ub {shape.n_ubatch}, {shape.n_threads} threads"
    console.print(title, soft_wrap=True, markup=False)
    units = Table("unit", "device", "kernels")
    for name in ("weights", "KV"):
        units.add_column(name, justify="right", no_wrap=True)
    for row in unit_rows(plan):
        units.add_row(row.unit, row.device, ", ".join(row.kernels), human(row.weight_bytes), human(row.kv_bytes) if row.kv_bytes else "")
    console.print(units)
    ledger = Table("device", "purpose", "what", show_footer=True)
    ledger.columns[0].footer = "total"
    ledger.add_column("bytes", justify="right", no_wrap=True, footer=human(plan.ledger.total()))
    for line in plan.ledger.lines:
        ledger.add_row(line.device, line.purpose, line.what, human(line.n_bytes))
    console.print(ledger)
    per_token, bandwidth = token_bytes(plan), read_bandwidth(shape.n_threads)
    console.print(f"{human(plan.available_bytes)} of memory is available", soft_wrap=True)
    console.print(
        f"one token reads {human(per_token)} of weights; at the {human(bandwidth)} a second that {shape.n_threads} threads read "
        f"from memory just now, that is at most {bandwidth / per_token:.0f} tokens a second",
        soft_wrap=True,
    )
    for note in plan.notes:
        console.print(note, soft_wrap=True, markup=False)
