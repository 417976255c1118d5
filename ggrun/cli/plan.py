"""`ggrun plan`: what a model would take and which kernel would run where, without loading it; for this machine or a described one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import EngineOptions, JsonFlag, ModelArgument, flag
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.engine.loading import Options, Planned
    from ggrun.plan.device import Place
    from ggrun.plan.planner import DoesNotFit, Plan
    from ggrun.plan.whatif import Alternative

_MACHINE = "A machine that is not this one"
Vram = Annotated[
    str | None, flag("--vram", panel=_MACHINE, metavar="SIZE,...", help="plan for GPUs with so much memory, all of it free, such as 6GiB")
]
Ram = Annotated[str | None, flag("--ram", panel=_MACHINE, metavar="SIZE", shown="this one's", help="plan for so much memory")]
GpuArch = Annotated[
    str, flag("--gpu-arch", panel=_MACHINE, metavar="CC", shown=86, help="compute capability of the GPUs of --vram: 61, 75, 86, 8.9 ...")
]

KvTokens = Annotated[
    int | None,
    flag(
        "--kv-tokens",
        panel="Compute",
        metavar="N",
        shown="each its part of -c",
        help="tokens that -np sequences share, as those of serve do; -c is then what one may hold; -1: as -c",
    ),
]


def plan(
    model: ModelArgument = None,
    *,
    engine_options: EngineOptions,
    kv_tokens: KvTokens = None,
    vram: Vram = None,
    ram: Ram = None,
    gpu_arch: GpuArch = "86",
    list_devices: ListDevicesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Show every byte a model would take and what would compute it; loads nothing."""
    from ggrun.cli.opening import chosen, settings
    from ggrun.cli.screen import Screen
    from ggrun.engine.loading import Options, plan_model
    from ggrun.plan.planner import DoesNotFit
    from ggrun.plan.report import report
    from ggrun.runtime.cpu.bandwidth import read_bandwidth

    screen = Screen()
    places = machine(vram, ram, gpu_arch)
    named = chosen(model, engine_options.model_flag, screen)
    options = Options(**settings(named, engine_options, screen, places is not None), kv_tokens=kv_tokens or 0)
    try:
        planned = plan_model(named.path, options, places)
    except DoesNotFit as error:
        if error.plan:
            _refused(error, error.plan, named.label, json_output)
        raise
    try:
        others = alternatives(planned, options)
        if json_output:
            bandwidth = read_bandwidth(planned.plan.shape.n_threads)
            print(json.dumps(report(planned.plan, named.label, bandwidth, others), ensure_ascii=False))
        else:
            _show(planned.plan, named.label, others)
    finally:
        planned.file.close()


def machine(vram: str | None, ram: str | None, gpu_arch: str) -> "tuple[Place, ...] | None":
    """The devices that the flags describe; None: this machine's."""
    from ggrun.engine import places
    from ggrun.plan.pins import size

    if vram is None and ram is None:
        return None
    digits = gpu_arch.replace(".", "").removeprefix("sm_")
    if not digits.isdigit() or not 20 <= int(digits) <= 990:
        raise GgrunError(f"--gpu-arch {gpu_arch} is no compute capability; it is written 86 or 8.6")
    n_ram = size("--ram", ram) if ram else None
    if vram is None:
        return (places.cpu(n_ram), *places.gpus())
    return places.described([size("--vram", text) for text in vram.split(",")], n_ram, int(digits))


def alternatives(planned: "Planned", options: "Options") -> "list[Alternative]":
    """What would change if one thing were different."""
    from ggrun.engine.loading import replan
    from ggrun.plan.planner import DoesNotFit
    from ggrun.plan.whatif import Alternative, changes

    rows = []
    for change in changes(planned.plan, options.placement):
        pins = replace(options.placement, n_gpu_layers=change.n_gpu_layers)
        other = replace(
            options, n_ctx=change.n_ctx, kv_tokens=change.kv_tokens, type_k=change.type_k, type_v=change.type_v, placement=pins
        )
        fits = True
        try:
            plan = replan(planned, other)
        except DoesNotFit as error:
            if not error.plan:
                continue
            fits, plan = False, error.plan
        except GgrunError:  # heads that a KV type does not fit
            continue
        used = {line.device: plan.ledger.total(line.device) for line in plan.ledger.lines}
        told = plan.prediction
        layers = plan.choice.n_gpu_layers if plan.choice else None
        row = Alternative(change.what, " ".join(change.flags), used, fits, layers, told.prompt if told else 0, told.answer if told else 0)
        rows.append(row)
    return rows


def _show(plan: "Plan", model: str, others: "Sequence[Alternative]") -> None:
    from rich.console import Console

    from ggrun.cli import picture
    from ggrun.plan.describe import token_bytes
    from ggrun.plan.ledger import human
    from ggrun.runtime.cpu.bandwidth import read_bandwidth

    console = Console(highlight=False)
    shape = plan.shape
    shared = f" ({shape.kv_tokens} shared)" if shape.shared else ""
    title = f"{model}: {shape.n_ctx} tokens of context x {shape.n_seqs}{shared}, -ub {shape.n_ubatch}, {shape.n_threads} threads"
    console.print(title, soft_wrap=True, markup=False)
    picture.show_bars(console, plan)
    picture.show_units(console, plan)
    picture.show_ledger(console, plan)
    if others:
        picture.show_alternatives(console, "what if", plan, others)
    if all(segment.device == "CPU" for segment in plan.segments):
        per_token, bandwidth = token_bytes(plan), read_bandwidth(shape.n_threads)
        console.print(
            f"one token reads {human(per_token)} of weights; at the {human(bandwidth)} a second that {shape.n_threads} threads read "
            f"from memory just now, that is at most {bandwidth / per_token:.0f} tokens a second",
            soft_wrap=True,
        )
    console.print(predicted(plan), soft_wrap=True)
    for note in plan.notes:
        console.print(note, soft_wrap=True, markup=False)


def predicted(plan: "Plan") -> str:
    """The prediction as a sentence that says what it rests on."""
    from ggrun.cli.picture import speed

    p = plan.prediction
    if p is None:
        return ""
    rests = "measured speeds" if p.measured else "guessed speeds; `ggrun tune` measures this machine's"
    return (
        f"predicted: {speed(p.prompt)} tokens a second of a prompt, {speed(p.answer)} of an answer, {speed(p.answer_full)} when the "
        f"context is full ({rests})"
    )


def _refused(error: "DoesNotFit", plan: "Plan", model: str, json_output: bool) -> None:
    """What would not fit, as a picture, and the commands of the nearest plans; the error follows."""
    from shlex import join

    from rich.console import Console

    from ggrun.cli import picture
    from ggrun.plan.report import refusal

    commands = [join(["ggrun", "chat", *([] if model == "embedded" else [model]), *words]) for words in error.flags]
    if json_output:
        print(json.dumps(refusal(plan, model, error.problem, commands), ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(f"{model} does not fit", style="bold red", soft_wrap=True, markup=False)
    picture.show_bars(console, plan)
    if commands:
        console.print("these do:", style="bold")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, markup=False)
