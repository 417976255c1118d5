"""From the flags of `ggrun serve` to a running server, and what is said when it starts."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggrun.cli.choosing import given
from ggrun.cli.llama_server import answers_to
from ggrun.cli.named import Model, named
from ggrun.cli.opening import chosen, settings
from ggrun.cli.options import SamplingOptions
from ggrun.cli.picture import rooms_of
from ggrun.cli.prompt import text_of, typed
from ggrun.cli.screen import Screen
from ggrun.cli.serve_options import AnswerOptions, CacheOptions, LimitOptions, ListenOptions, RouteOptions, ServedEngineOptions
from ggrun.engine.gpus import look_again
from ggrun.engine.loading import Options, embedded_model, plan_model
from ggrun.engine.tiers import default_disk_cache
from ggrun.errors import GgrunError
from ggrun.plan.describe import unit_rows
from ggrun.plan.ledger import human
from ggrun.plan.planner import DoesNotFit
from ggrun.server.app import create_app
from ggrun.server.errors import ApiError
from ggrun.server.listener import bind, serve
from ggrun.server.settings import Settings
from ggrun.server.shelf import Defaults, Entry, Shelf

if TYPE_CHECKING:
    import socket

    from ggrun import Engine

SLOTS, STEP_MS = 4, 120.0


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
    for note in answers_to(os.environ):
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


def server_settings(
    listen: ListenOptions, routes: RouteOptions, cache: CacheOptions, answers: AnswerOptions, limits: LimitOptions
) -> Settings:
    """The server's settings as the flags say. Raises GgrunError for what cannot be."""
    if routes.reranking:
        raise GgrunError("--reranking: no reranker is supported yet")
    if routes.pooling in ("none", "rank"):
        raise GgrunError(f"--pooling {routes.pooling} is not supported; embeddings are made by mean, cls or last")
    if not answers.jinja:
        raise GgrunError("--no-jinja: chats always go through a template here; --chat-template names another")
    if not cache.cont_batching:
        raise GgrunError("--no-cont-batching: running answers always share their steps here; -np 1 answers one request at a time")
    if not 0 <= listen.port <= 65535:
        raise GgrunError(f"--port {listen.port} is out of range; ports go from 1 to 65535, and 0 picks one")
    return Settings(
        hosts=tuple(words(listen.host)) or ("127.0.0.1",),
        port=listen.port,
        api_keys=_keys(listen),
        ssl=_ssl(listen),
        allowed_hosts=tuple(word.lower() for word in words(listen.allow_host)),
        cors_origins=tuple(word.lower().rstrip("/") for word in words(listen.cors_origin)),
        strict_model=listen.strict_model,
        metrics=routes.metrics,
        slots=routes.slots,
        props=routes.props,
        webui=routes.webui,
        pooling=routes.pooling,
        slot_save_path=_folder("--slot-save-path", cache.slot_save_path),
        context_shift=cache.context_shift,
        cache_prompt=cache.cache_prompt,
        reasoning_format=answers.reasoning_format,
        reasoning_budget=0 if answers.reasoning == "off" else answers.reasoning_budget,
        prefill_assistant=answers.prefill_assistant,
        template=_template_variables(answers),
        timeout=_seconds("--timeout", limits.timeout),
        read_timeout=_seconds("--read-timeout", limits.read_timeout),
        shutdown_timeout=_seconds("--shutdown-timeout", limits.shutdown_timeout),
        keep_alive=limits.sse_ping_interval if limits.sse_ping_interval > 0 else 1e9,
        sleep_idle=limits.sleep_idle_seconds,
        max_body=_count("--max-body", limits.max_body, 1) << 20,
        max_connections=_count("--max-connections", limits.max_connections, 0),
        max_queue=_count("--max-queue", limits.max_queue, 0),
        verbose=limits.verbose,
    )


def greeting(engine: Engine, name: str, sockets: list[socket.socket], own: Settings) -> list[str]:
    """What is said when a model is ready."""
    plan, pool = engine.plan, engine.status().kv_tokens
    shape = plan.shape
    lines = []
    for room in rooms_of(plan):
        used = plan.ledger.total(room.device)
        if used:
            lines.append(f"{room.device}: {human(used)} of {human(room.limit_bytes)}")
    layers = [f"{row.unit}: {row.device}" for row in unit_rows(plan)] if len(plan.segments) > 1 else []
    lines += [", ".join(layers)] if layers else []
    slots = "one slot (-np), which has" if shape.n_seqs == 1 else f"{shape.n_seqs} slots (-np), which share"
    lines.append(f"{name}: a conversation may grow to {shape.n_ctx} tokens (-c); {slots} a pool of {pool} (--kv-tokens)")
    scheme = "https" if own.ssl else "http"
    for sock in sockets:
        address = sock.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        lines.append(f"listening at {scheme}://{host}:{address[1]}" + (", with a page for a browser there" if own.webui else ""))
    if own.wide and not own.api_keys:
        lines.append("warning: other machines can reach this address and nothing keeps them out; --api-key does")
    return lines


def words(texts: list[str] | None) -> list[str]:
    """The words of comma lists."""
    return [word.strip() for text in texts or [] for word in text.split(",") if word.strip()]


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

    def load() -> Engine:
        from ggrun import Engine

        look_again()
        with screen.progress() as progress:
            opened = Engine.open(model.path, progress=progress, chat_template=template, **options)
        for note in opened.notes:
            screen.once(f"{name}: {note}")
        return opened

    def fits_beside() -> bool:
        """Whether it fits now, and all of it on the GPUs, where there are any and it may use them."""
        look_again()
        try:
            planned = plan_model(model.path, Options(**options))
        except DoesNotFit:
            return False
        with planned.file:
            return len(planned.places) == 1 or not planned.plan.choice or planned.plan.choice.n_gpu_layers > len(planned.spec.layers)

    return Entry(name, model.path, load, model.aliases, defaults, fits_beside)


def _served(model: Model, engine: ServedEngineOptions, cache: CacheOptions) -> dict[str, Any]:
    """The engine's options that only the server sets."""
    wanted: dict[str, Any] = {
        "n_parallel": engine.n_parallel or model.options.get("n_parallel") or SLOTS,
        "kv_tokens": engine.kv_tokens or model.options.get("kv_tokens") or -1,
        "step_ms": STEP_MS if engine.step_ms is None else engine.step_ms,
        "cram_mib": cache.cache_ram,
        "disk_cache": default_disk_cache() if cache.disk_cache else None,
        "disk_cache_mib": cache.disk_cache_mib,
    }
    if engine.n_parallel == -1:  # llama-server's word for its own choice
        wanted["n_parallel"] = ServedEngineOptions().n_parallel
    known = {field.name for field in fields(Options)}
    return {name: value for name, value in wanted.items() if name in known}


def _template_variables(answers: AnswerOptions) -> dict[str, Any]:
    """What -rea, --reasoning-effort and --chat-template-kwargs tell every chat template; the last wins."""
    variables: dict[str, Any] = {}
    if answers.reasoning != "auto":
        variables["enable_thinking"] = answers.reasoning == "on"
    if answers.reasoning_effort not in (None, "default"):
        variables["reasoning_effort"] = answers.reasoning_effort
    return variables | _object("--chat-template-kwargs", answers.chat_template_kwargs)


def _ssl(listen: ListenOptions) -> tuple[Path, Path] | None:
    """Key and certificate, looked at here so that a wrong one is a sentence."""
    if listen.ssl_key_file is None and listen.ssl_cert_file is None:
        return None
    if listen.ssl_key_file is None or listen.ssl_cert_file is None:
        raise GgrunError("https needs both --ssl-key-file and --ssl-cert-file")
    import ssl

    key, certificate = Path(listen.ssl_key_file).expanduser(), Path(listen.ssl_cert_file).expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise GgrunError(f"--ssl-key-file {key} and --ssl-cert-file {certificate} cannot be used: {error.strerror or error}") from None
    return key, certificate


def _template(answers: AnswerOptions) -> str | None:
    if answers.chat_template is not None and answers.chat_template_file is not None:
        raise GgrunError("the chat template is given twice, by --chat-template and by --chat-template-file; give it once")
    return answers.chat_template if answers.chat_template_file is None else text_of(answers.chat_template_file)


def _keys(listen: ListenOptions) -> tuple[str, ...]:
    keys = words(listen.api_key)
    if listen.api_key_file is not None:
        lines = (line.strip() for line in text_of(listen.api_key_file).splitlines())
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise GgrunError(f"--api-key-file {listen.api_key_file} holds no key; write one a line")
        keys += found
    elif listen.api_key and not keys:
        raise GgrunError("--api-key is empty; without a key, leave it out")
    return tuple(dict.fromkeys(keys))


def _folder(flag: str, name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.is_dir():
        raise GgrunError(f"{flag} {name} is no folder")
    return path.resolve()


def _object(flag: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise GgrunError(f"{flag} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GgrunError(f'{flag} must be a JSON object, such as {{"enable_thinking": false}}')
    return value


def _seconds(flag: str, value: float) -> float:
    if not 0 <= value <= 1e9:
        raise GgrunError(f"{flag} {value:g} is out of range; it takes seconds, 0 or more")
    return value


def _count(flag: str, value: int, least: int) -> int:
    if not least <= value <= 1 << 30:
        raise GgrunError(f"{flag} {value} is out of range; it takes {least} or more")
    return value
