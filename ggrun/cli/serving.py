"""From the flags of `ggrun serve` to a running server, and what is said when it starts."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ggrun.cli.choosing import given
from ggrun.cli.llama_server import answers_to
from ggrun.cli.named import Model, named
from ggrun.cli.opening import chosen, settings
from ggrun.cli.options import SamplingOptions, rows_of
from ggrun.cli.picture import PURPOSES
from ggrun.cli.prompt import text_of, typed
from ggrun.cli.screen import Screen
from ggrun.cli.serve_options import AnswerOptions, CacheOptions, LimitOptions, ListenOptions, RouteOptions, ServedEngineOptions
from ggrun.cli.serve_settings import server_settings, words
from ggrun.engine.gpus import look_again
from ggrun.engine.loading import Options, embedded_model, plan_model
from ggrun.engine.tiers import default_disk_cache
from ggrun.errors import GgrunError
from ggrun.plan.describe import unit_rows
from ggrun.plan.ledger import human
from ggrun.plan.pins import Pins
from ggrun.plan.planner import DoesNotFit
from ggrun.server.app import create_app
from ggrun.server.errors import ApiError
from ggrun.server.listener import bind, serve
from ggrun.server.settings import Settings
from ggrun.server.shelf import Defaults, Entry, Shelf, Taken

if TYPE_CHECKING:
    import socket

    from ggrun import Engine

SLOTS, STEP_MS = 4, 120.0
LOGIT_ROWS = 16  # of a step, at least: what a prompt's own log probabilities are computed by
TABLES = (ServedEngineOptions, ListenOptions, RouteOptions, CacheOptions, AnswerOptions, LimitOptions, SamplingOptions)


def run(
    model: str | None,
    engine: ServedEngineOptions,
    listen: ListenOptions,
    routes: RouteOptions,
    cache: CacheOptions,
    answers: AnswerOptions,
    limits: LimitOptions,
    sampling: SamplingOptions,
) -> None:
    """Everything `ggrun serve` does. Raises GgrunError for flags that cannot be met, a port in use, a model that cannot be opened."""
    screen = Screen()
    for note in answers_to(os.environ, variables()):
        screen.note(note)
    own = server_settings(listen, routes, cache, answers, limits)
    shelf = Shelf(_entries(model, engine, listen, cache, answers, sampling, screen), own)
    sockets = bind(own.hosts, own.port)

    async def start() -> None:
        try:
            opened = await shelf.open()
        except ApiError as error:
            raise GgrunError(error.message) from error
        for line in greeting(opened.engine, opened.name, sockets, own):
            screen.note(line)

    serve(create_app(shelf, own), sockets, own, start)


def greeting(engine: Engine, name: str, sockets: list[socket.socket], own: Settings) -> list[str]:
    """What is said when a model is ready."""
    plan, pool = engine.plan, engine.status().kv_tokens
    shape = plan.shape
    lines = []
    for room in plan.devices:
        purposes = dict.fromkeys(line.purpose for line in plan.ledger.lines if line.device == room.device)
        if purposes:
            parts = [f"{PURPOSES[p][0] if p in PURPOSES else p} {human(plan.ledger.total(room.device, p))}" for p in purposes]
            lines.append(f"{room.device}: {human(plan.ledger.total(room.device))} of {human(room.limit_bytes)} ({', '.join(parts)})")
    layers = [f"{row.unit}: {row.device}" for row in unit_rows(plan)] if len(plan.segments) > 1 else []
    lines += [", ".join(layers)] if layers else []
    slots = "one slot (-np), which has" if shape.n_seqs == 1 else f"{shape.n_seqs} slots (-np), which share"
    lines.append(f"{name}: a conversation may grow to {shape.n_ctx} tokens (-c); {slots} a pool of {pool} (--kv-tokens)")
    scheme = "https" if own.ssl else "http"
    for sock in sockets:
        address = sock.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        page = ", with a page for a browser there" if own.webui else ""
        lines.append(f"listening at {scheme}://{host}:{address[1]}{own.api_prefix}{page}")
    if own.wide and not own.api_keys:
        lines.append("warning: other machines can reach this address and nothing keeps them out; --api-key does")
    return lines


def variables() -> set[str]:
    """The variables of the environment that flags of this command read."""
    kinds: list[Any] = [row.type for table in TABLES for row in rows_of(table)]
    return {name for kind in kinds if isinstance(name := kind.__metadata__[0].envvar, str)}


def _entries(
    model: str | None,
    engine: ServedEngineOptions,
    listen: ListenOptions,
    cache: CacheOptions,
    answers: AnswerOptions,
    sampling: SamplingOptions,
    screen: Screen,
) -> list[Entry]:
    """The model that was named, and those of models.toml; of these the first is the default where none was named.

    Flags win over what models.toml says of the default model, and are what the others have where it says nothing.
    """
    others = named()
    if not (model or engine.model_flag or os.environ.get("LLAMA_ARG_MODEL")) and others:
        model = next(iter(others))
        screen.note(f"the default model is {model}, the first of models.toml")
    first = chosen(model, engine.model_flag, screen)
    name = next((name for name, one in others.items() if one == first), None)
    names = words(listen.alias) or [name or (first.path or embedded_model()).stem]
    default = replace(first, aliases=(*names[1:], *((name,) if name and name != names[0] else ()), *first.aliases))
    found = [_entry(names[0], default, engine, cache, answers, given(sampling, first.sampling), screen)]
    flags = given(sampling, {})
    for other, one in others.items():
        if other not in (name, names[0]):
            found.append(_entry(other, one, under(one, engine), cache, answers, {**flags, **one.sampling}, screen))
    return found


def under(model: Model, flags: ServedEngineOptions) -> ServedEngineOptions:
    """The flags without what models.toml says of a model itself."""
    own: dict[str, Any] = {field: None for field, name in _FIELDS.items() if name in model.options}
    if "load_mode" in own:
        own |= {"mlock": False, "no_mmap": False}
    own |= {field.name: None for field in fields(flags) if field.name in model.placement}
    placement: dict[str, Any] = {field.name: None for field in fields(flags.placement) if field.name in model.placement}
    return replace(flags, **own, placement=replace(flags.placement, **placement))


_FIELDS = {
    **{name: name for name in ("n_ctx", "n_threads", "n_threads_batch", "n_batch", "n_ubatch", "n_parallel", "kv_tokens", "load_mode")},
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
}


def _entry(
    name: str,
    model: Model,
    engine: ServedEngineOptions,
    cache: CacheOptions,
    answers: AnswerOptions,
    sampling: dict[str, Any],
    screen: Screen,
) -> Entry:
    options = settings(model, engine, screen) | _served(model, engine, cache)
    defaults = Defaults(
        sampling=sampling,
        n_predict=answers.n_predict,
        keep=answers.keep,
        system=model.system,
        stop=tuple(filter(None, (typed(text, answers.escape) for text in answers.reverse_prompt or ()))),
        special=answers.special,
    )
    template = _template(answers)
    if template is None and model.template_file:
        template = text_of(str(model.template_file))

    def load(taken: Taken) -> Engine:
        from ggrun import Engine

        look_again()
        chosen = beside(options, taken)
        with screen.progress() as progress:
            opened = Engine.open(model.path, progress=progress, chat_template=template, **chosen)
        for note in opened.notes:
            screen.once(f"{name}: {note}")
        opened.on_note(lambda note: screen.once(f"{name}: {note}"))
        return opened

    def fits_beside(taken: Taken) -> bool:
        """Whether it fits now, and all of it on the GPUs, where there are any and it may use them."""
        look_again()
        try:
            planned = plan_model(model.path, Options(**beside(options, taken)))
        except DoesNotFit:
            return False
        with planned.file:
            return len(planned.places) == 1 or not planned.plan.choice or planned.plan.choice.n_gpu_layers > len(planned.spec.layers)

    return Entry(name, model.path, load, model.aliases, defaults, fits_beside)


def beside(options: dict[str, Any], taken: Taken) -> dict[str, Any]:
    """The options with budgets that are what other models leave of them."""
    pins: Pins = options["placement"]
    ram = max(1, pins.ram_budget - taken.get("CPU", 0)) if pins.ram_budget else 0
    cards = [n_bytes for device, n_bytes in sorted(taken.items()) if device != "CPU"]
    budgets = pins.vram_budget * len(cards) if len(pins.vram_budget) == 1 and len(cards) > 1 else pins.vram_budget
    left = tuple(max(1, budget - (cards[index] if index < len(cards) else 0)) for index, budget in enumerate(budgets))
    return {**options, "placement": replace(pins, ram_budget=ram, vram_budget=left)}


def _served(model: Model, engine: ServedEngineOptions, cache: CacheOptions) -> dict[str, Any]:
    """The engine's options that only the server sets."""
    n_parallel = model.options.get("n_parallel") if engine.n_parallel is None else engine.n_parallel
    n_slots: int = SLOTS if n_parallel in (None, -1) else n_parallel  # -1 is llama-server's word for its own choice
    return {
        "n_parallel": n_slots,
        "n_logits": max(n_slots, LOGIT_ROWS),
        "kv_tokens": engine.kv_tokens or model.options.get("kv_tokens") or -1,
        "step_ms": STEP_MS if engine.step_ms is None else engine.step_ms,
        "cram_mib": cache.cache_ram,
        "disk_cache": default_disk_cache() if cache.disk_cache else None,
        "disk_cache_mib": cache.disk_cache_mib,
    }


def _template(answers: AnswerOptions) -> str | None:
    if answers.chat_template is not None and answers.chat_template_file is not None:
        raise GgrunError("the chat template is given twice, by --chat-template and by --chat-template-file; give it once")
    return answers.chat_template if answers.chat_template_file is None else text_of(answers.chat_template_file)
