"""`ggrun doctor`: what this machine has to compute with, what is missing, and the command that mends it.

`describe` gathers, in the form that `--json` prints; `rows` says it for people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggrun.cli.options import JsonFlag

if TYPE_CHECKING:
    from ggrun.runtime.cuda.probe import Part, Probe


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ok None: neither there nor missed."""

    part: str
    ok: bool | None
    text: str
    command: str = ""


BuildFlag = Annotated[
    bool, typer.Option("--build-pycuda", help="first build PyCUDA with g++, without a CUDA toolkit (about 90 seconds), and install it")
]


def doctor(json_output: JsonFlag = False, *, build_pycuda: BuildFlag = False) -> None:
    """Show what this machine has to compute with, what is missing, and the command that mends it."""
    from ggrun.cli.screen import Screen

    if build_pycuda:
        from ggrun.runtime.cuda.build_pycuda import install

        install(Screen().note)
    report = describe()
    if json_output:
        import json

        print(json.dumps(report, ensure_ascii=False))
    else:
        _show(list(rows(report)))
    if any(row.command for row in rows(report)):
        raise typer.Exit(1)


def describe() -> dict[str, Any]:
    """Everything found; sizes in bytes, bandwidth in bytes a second."""
    from ggrun import __version__
    from ggrun.runtime.cuda.probe import probe

    return {"version": __version__, "processor": _processor(), "cuda": _cuda(probe()), "cache": _cache()}


def _processor() -> dict[str, Any]:
    import psutil

    from ggrun.plan.memory import available_bytes
    from ggrun.runtime.cpu.cores import n_cores
    from quant.simd import tiers

    return {
        "name": _processor_name(),
        "tier": tiers()[0],
        "cores": n_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "available_bytes": available_bytes(),
    }


def _processor_name() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cuda(found: Probe) -> dict[str, Any]:
    parts: dict[str, Part] = {"driver": found.driver, "devices": found.gpus, "pycuda": found.pycuda, "compiler": found.compiler}
    return {
        "usable": not found.problem,
        "problem": found.problem,
        "no_gpu": found.no_gpu,
        "parts": {name: {"ok": part.ok, "text": part.text, "command": part.command} for name, part in parts.items()},
        "devices": [asdict(device) for device in found.devices],
        "unusable": [asdict(device) | {"why": why} for device, why in found.unusable],
    }


def _cache() -> dict[str, Any]:
    from ggrun.runtime.kept import cache_base

    base = cache_base()
    sizes = [path.stat().st_size for name in ("kernels", "cuda") for path in (base / name).rglob("*") if path.is_file()]
    above = next((folder for folder in (base, *base.parents) if folder.exists()), base)
    return {"folder": str(base), "bytes": sum(sizes), "writable": above.is_dir() and os.access(above, os.W_OK | os.X_OK)}


def rows(report: dict[str, Any]) -> Iterator[Row]:
    """The table's lines, of what `describe` made."""
    from ggrun.plan.ledger import human

    cpu, cuda, cache = report["processor"], report["cuda"], report["cache"]
    yield Row("processor", True, f"{cpu['name']}: {cpu['cores']} cores, kernels for {cpu['tier']}")
    yield Row("memory", True, f"{human(cpu['memory_bytes'])}, {human(cpu['available_bytes'])} of it available")
    parts = cuda["parts"]
    yield _row("NVIDIA driver", parts["driver"], cuda["no_gpu"])
    for device in cuda["devices"]:
        bandwidth = f", {device['bandwidth'] / 1e9:.0f} GB/s" if device["bandwidth"] else ""
        size = human(device["total_bytes"])
        yield Row(f"CUDA{device['index']}", True, f"{device['name']}: compute capability {_capability(device)}, {size}{bandwidth}")
    for device in cuda["unusable"]:
        yield Row(f"CUDA{device['index']}", False, f"{device['name']} {device['why']}")
    if parts["driver"]["ok"] and not cuda["devices"] and not cuda["unusable"]:
        yield _row("GPU", parts["devices"])
    yield _row("PyCUDA", parts["pycuda"], cuda["no_gpu"])
    yield _row("CUDA compiler", parts["compiler"], cuda["no_gpu"])
    if cache["writable"]:
        yield Row("kernel cache", True, f"{cache['folder']}, {human(cache['bytes'])}")
    else:
        why = f"{cache['folder']} cannot be written: kernels are compiled at every start"
        yield Row("kernel cache", False, why, "export GGRUN_CACHE_DIR=FOLDER")


def _row(name: str, part: dict[str, Any], no_gpu: bool = False) -> Row:
    """no_gpu: what is missing is not missed."""
    if part["ok"] or not no_gpu:
        return Row(name, part["ok"], part["text"], part["command"])
    return Row(name, None, part["text"])


def _capability(device: dict[str, Any]) -> str:
    return f"{device['cc'] // 10}.{device['cc'] % 10}"


def _show(lines: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", "part", "what there is")
    for row in lines:
        mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "-"}[row.ok]
        table.add_row(mark, row.part, _plain(row.text))
    console.print(table)
    for row in lines:
        if row.command:
            console.print(f"{row.part}: this mends it:", markup=False)
            console.print(f"    {row.command}", markup=False, soft_wrap=True)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)
