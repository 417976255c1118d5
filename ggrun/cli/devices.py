"""`--list-devices`: the devices as llama.cpp lists them, and nothing else is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ggrun.runtime.cuda.driver import Device


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from ggrun.runtime.cuda.probe import CudaMissing, probe

    found = probe()
    print("Available devices:")
    for device in found.devices:
        try:
            free = _free(device) if not found.problem else None
        except CudaMissing:
            free = 0
        memory = f"{device.total_bytes >> 20} MiB" + ("" if free is None else f", {free >> 20} MiB free")
        print(f"  {device.label}: {device.name} ({memory})")
    if found.problem:
        print(f"  CPU only: {found.problem}")
    raise typer.Exit


def _free(device: Device) -> int:
    from ggrun.runtime.cuda.probe import Context

    context = Context(device)
    try:
        return context.memory()[0]
    finally:
        context.close()


ListDevicesFlag = Annotated[
    bool, typer.Option("--list-devices", callback=_list, is_eager=True, rich_help_panel="Compute", help="print the devices and exit")
]
