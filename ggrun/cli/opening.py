"""From flags to a loaded engine: what the command line's words mean for `Engine.open`, and what is said while it loads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggrun.cli.named import Model, find
from ggrun.cli.options import EngineOptions
from ggrun.cli.screen import Screen
from ggrun.errors import GgrunError
from ggrun.plan.pins import Pins, read_pins

if TYPE_CHECKING:
    from ggrun import Engine


def chosen(argument: str | None, flag: str | None, screen: Screen) -> Model:
    """The model the command line means; says so when it is the embedded one."""
    model = find(argument, flag, os.environ)
    if model.path is None:
        screen.note("using the embedded model; name a GGUF file to use another")
    return model


def settings(model: Model, options: EngineOptions, screen: Screen, described: bool = False) -> dict[str, Any]:
    """The options of `Engine.open`, and of a plan, that the flags and models.toml mean. Raises GgrunError for flags that cannot be met.

    described: they are for a machine that is not this one, whose GPUs do not matter.
    """
    placement = pins(options)
    if not described:
        no_gpu(options.n_gpu_layers, placement, screen)
    if options.flash_attn == "off":
        raise GgrunError("-fa off: attention is always fused here; -fa takes auto or on")
    return {
        "n_ctx": options.n_ctx if options.n_ctx is not None else model.n_ctx or 0,
        "n_threads": max(0, options.n_threads if options.n_threads is not None else model.n_threads or 0),
        "n_threads_batch": max(0, options.n_threads_batch or 0),
        "n_batch": options.n_batch,
        "n_ubatch": options.n_ubatch,
        "n_parallel": options.n_parallel,
        "load_mode": load_mode(options),
        "type_k": options.cache_type_k.lower(),
        "type_v": options.cache_type_v.lower(),
        "placement": placement,
    }


@contextmanager
def opened(model: Model, options: EngineOptions, screen: Screen, **more: Any) -> Iterator[Engine]:
    """The engine, loaded, its notes said; closed at the end. `more` goes to `Engine.open` as it is."""
    from ggrun import Engine

    values = settings(model, options, screen) | more
    with screen.progress() as progress:
        engine = Engine.open(model.path, progress=progress, **values)
    with engine:
        for note in engine.notes:
            screen.note(note)
        yield engine


def load_mode(options: EngineOptions) -> str:
    """The load mode that -lm, or llama.cpp's older --mlock or --no-mmap, names; auto when none does."""
    named = options.load_mode
    older = [mode for wanted, mode in ((options.mlock, "mlock"), (options.no_mmap, "none")) if wanted]
    modes = set(older + ([named] if named else []))
    if len(modes) > 1:
        raise GgrunError(f"weights cannot be loaded as {' and as '.join(sorted(modes))}; choose one of -lm, --mlock, --no-mmap")
    return modes.pop() if modes else "auto"


def pins(options: EngineOptions) -> Pins:
    """What the flags pin about where the model runs."""
    p = options.placement
    return read_pins(
        n_gpu_layers=options.n_gpu_layers,
        override_tensor=p.override_tensor or (),
        cpu_moe=options.cpu_moe,
        n_cpu_moe=options.n_cpu_moe,
        n_cpu_ffn=p.n_cpu_ffn,
        kv_offload=p.kv_offload,
        op_offload=p.op_offload,
        tensor_split=p.tensor_split,
        device=p.device,
        main_gpu=p.main_gpu,
        split_mode=p.split_mode.lower(),
        vram_budget=p.vram_budget,
        ram_budget=p.ram_budget,
        fit=p.fit.lower(),
        fit_target=p.fit_target,
        fit_ctx=p.fit_ctx,
    )


def no_gpu(wanted: str | None, placement: Pins, screen: Screen) -> None:
    """Say once that layers asked for on a GPU run on the CPU; -ngl 0 and auto ask for nothing."""
    if placement.n_gpu_layers:
        from ggrun.engine.places import gpus

        if not gpus():
            from ggrun.engine.gpus import problem

            screen.once(f"-ngl {wanted}: there is no CUDA device ggrun can use ({problem()}); every layer runs on the CPU")
