"""From the flags of `ggrun serve` to the server's settings: read, checked, each mistake a sentence. Opens nothing but files of keys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ggrun.cli.prompt import text_of
from ggrun.cli.serve_options import AnswerOptions, CacheOptions, LimitOptions, ListenOptions, RouteOptions
from ggrun.errors import GgrunError
from ggrun.server.settings import Settings


def server_settings(
    listen: ListenOptions, routes: RouteOptions, cache: CacheOptions, answers: AnswerOptions, limits: LimitOptions
) -> Settings:
    """The server's settings as the flags say. Raises GgrunError for what cannot be."""
    if routes.reranking:
        raise GgrunError("--reranking: no reranker is supported yet")
    if routes.pooling in ("none", "rank"):
        raise GgrunError(f"--pooling {routes.pooling} is not supported; embeddings are made by mean, cls or last")
    if answers.reasoning_budget < -1:
        raise GgrunError(f"--reasoning-budget {answers.reasoning_budget}: give a number of tokens, 0 for no thinking, or -1 for no limit")
    if not answers.jinja:
        raise GgrunError("--no-jinja: chats always go through a template here; --chat-template names another")
    if not cache.cont_batching:
        raise GgrunError("--no-cont-batching: running answers always share their steps here; -np 1 answers one request at a time")
    if not 0 <= listen.port <= 65535:
        raise GgrunError(f"--port {listen.port} is out of range; ports go from 1 to 65535, and 0 picks one")
    return Settings(
        hosts=tuple(words(listen.host)) or ("127.0.0.1",),
        port=listen.port,
        api_prefix=_prefix(listen.api_prefix or ""),
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
        reasoning_budget_message=answers.reasoning_budget_message or "",
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


def words(texts: list[str] | None) -> list[str]:
    """The words of comma lists."""
    return [word.strip() for text in texts or [] for word in text.split(",") if word.strip()]


def _template_variables(answers: AnswerOptions) -> dict[str, Any]:
    """What -rea, --reasoning-effort and --chat-template-kwargs tell every chat template; the last wins."""
    variables: dict[str, Any] = {}
    if answers.reasoning != "auto":
        variables["enable_thinking"] = answers.reasoning == "on"
    if answers.reasoning_effort not in (None, "default"):
        variables["reasoning_effort"] = answers.reasoning_effort
    return variables | _object("--chat-template-kwargs", answers.chat_template_kwargs)


def _prefix(given: str) -> str:
    """Without its last slash; empty for none."""
    prefix = given.rstrip("/")
    if not re.fullmatch(r"(/[\w.~-]+)*", prefix, re.ASCII) or {".", ".."} & set(prefix.split("/")):
        raise GgrunError(f"--api-prefix {given!r:.80} must begin with a slash and have letters, digits, and . _ ~ - between slashes")
    return prefix


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
