"""From flags to a loaded engine: what the command line's words mean for `Engine.open`, and what is said while it loads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
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
    placement = pins(options, model)
    if not described:
        no_gpu(options.n_gpu_layers, placement, screen)
    if options.flash_attn == "off":
        raise GgrunError("-fa off: attention is always fused here; -fa takes auto or on")
    flags = {name: getattr(options, name) for name in ("n_ctx", "n_threads", "n_threads_batch", "n_batch", "n_ubatch", "n_parallel")}
    flags |= {"type_k": options.cache_type_k, "type_v": options.cache_type_v, "load_mode": load_mode(options)}
    values = {**model.options, **{name: value for name, value in flags.items() if value is not None}}
    for name in ("n_threads", "n_threads_batch"):  # -1 is llama.cpp's word for choosing
        values[name] = max(0, values.get(name, 0))
    for name in ("type_k", "type_v"):
        values[name] = values.get(name, "f16").lower()
    return {"n_ctx": 0} | values | {"placement": placement}


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


def load_mode(options: EngineOptions) -> str | None:
    """The load mode that -lm, or llama.cpp's older --mlock or --no-mmap, names; None when none does."""
    named = options.load_mode
    older = [mode for wanted, mode in ((options.mlock, "mlock"), (options.no_mmap, "none")) if wanted]
    modes = set(older + ([named] if named else []))
    if len(modes) > 1:
        raise GgrunError(f"weights cannot be loaded as {' and as '.join(sorted(modes))}; choose one of -lm, --mlock, --no-mmap")
    return modes.pop() if modes else None


def pins(options: EngineOptions, model: Model | None = None) -> Pins:
    """What the flags, and models.toml where they are silent, pin about where the model runs."""
    p = options.placement
    flags = {field.name: getattr(p, field.name) for field in fields(p)}
    flags |= {name: getattr(options, name) for name in ("n_gpu_layers", "cpu_moe", "n_cpu_moe")}
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    named = dict(model.placement) if model else {}
    if given.keys() & {"cpu_moe", "n_cpu_moe"}:  # two words for one thing
        named = {name: value for name, value in named.items() if name not in ("cpu_moe", "n_cpu_moe")}
    words = {**named, **given}
    for name in ("split_mode", "fit"):
        if name in words:
            words[name] = words[name].lower()
    return read_pins(**words)


def no_gpu(wanted: str | None, placement: Pins, screen: Screen) -> None:
    """Say once that layers asked for on a GPU run on the CPU; -ngl 0 and auto ask for nothing."""
    if placement.n_gpu_layers:
        from ggrun.engine.places import gpus

        if not gpus():
            from ggrun.engine.gpus import problem

            screen.once(f"-ngl {wanted}: there is no CUDA device ggrun can use ({problem()}); every layer runs on the CPU")
