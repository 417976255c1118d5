"""Fields that requests of several APIs share: OpenAI's and llama.cpp's sampling, and llama.cpp's own switches.

Knows names and types; what is in range is `Sampling`'s to say. None stands for what a request does not set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, Final

import msgspec

from ggrun.engine.sampling import Sampling
from ggrun.server.errors import ApiError
from ggrun.server.task import Output

Bias = dict[str, float | bool | None] | list[list[int | str | float | bool | None]]
Stop = str | list[str] | None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields of `ggrun.Sampling`, by its names."""

    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    samplers: str | list[str] | None = None
    logit_bias: Bias | None = None
    ignore_eos: bool | None = None


class LlamaFields(SamplingFields, kw_only=True):
    """llama.cpp's switches, which it takes in every request that generates."""

    n_predict: int | None = None
    n_keep: int | None = None
    n_discard: int | None = None
    n_indent: int | None = None
    min_keep: int | None = None
    t_max_predict_ms: int | None = None
    cache_prompt: bool | None = None
    n_cache_reuse: int | None = None
    id_slot: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    return_tokens: bool | None = None
    n_probs: int | None = None
    post_sampling_probs: bool | None = None
    sse_ping_interval: float | None = None
    lora: list[Any] | None = None
    truncate: bool | None = None
    context_shift: bool | None = None


# field -> the values that ask for nothing, and why others are refused
REFUSED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "n_discard": (lambda value: value <= 0, "half of the context is dropped when it is shifted, never another number of tokens"),
    "n_indent": (lambda value: value == 0, "lines cannot be held to an indentation"),
    "min_keep": (lambda value: value <= 1, "samplers cannot be held to a least number of tokens"),
    "t_max_predict_ms": (lambda value: value <= 0, "an answer cannot be limited in time; n_predict limits its tokens"),
    "post_sampling_probs": (lambda value: not value, "probabilities are the model's own, before sampling"),
    "lora": (lambda value: not value, "LoRA adapters are not supported"),
}


def refuse(body: Any, table: Mapping[str, tuple[Callable[[Any], bool], str]] = REFUSED) -> None:
    """ApiError for a field whose value asks for what is not there."""
    for name, (harmless, reason) in table.items():
        value = getattr(body, name)
        if value is not None and not harmless(value):
            raise ApiError(400, f"{name} is not supported: {reason}", code="unsupported_parameter", param=name)


_SAMPLING: Final = tuple(field.name for field in dataclass_fields(Sampling))


def sampling_fields(body: SamplingFields) -> dict[str, Any]:
    """What a request sets of `Sampling`. logit_bias: pairs of a token id, or a text, and a number (see `biases`)."""
    values = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    if "logit_bias" in values:
        values["logit_bias"] = biases(values["logit_bias"])
    if "dry_sequence_breakers" in values:
        values["dry_sequence_breakers"] = tuple(values["dry_sequence_breakers"])
    return values


def biases(given: Bias) -> tuple[tuple[int | str, float], ...]:
    """Pairs from OpenAI's object of ids or llama.cpp's list of pairs. A text stands for each of its tokens; false forbids."""
    pairs = []
    for entry in given.items() if isinstance(given, dict) else given:
        if len(entry) != 2 or not isinstance(entry[0], (int, str)) or isinstance(entry[0], bool) or entry[1] is True:
            raise ApiError(400, f"logit_bias takes pairs of a token and a number, not {entry!r:.80}", param="logit_bias")
        token, value = entry[0], entry[1]
        if value is False or value is None:
            bias = -math.inf if value is False else 0.0
        elif isinstance(value, str):
            raise ApiError(400, f"logit_bias must be a number, not {value!r:.40}", param="logit_bias")
        else:
            bias = float(value)
        pairs.append((_token(token), bias))
    return tuple(pairs)


def _token(token: int | str) -> int | str:
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12:
        return int(token)
    return token


def stop_words(given: Stop) -> tuple[str, ...]:
    """Stop words as a request gives them, without empty ones."""
    return tuple(word for word in ([given] if isinstance(given, str) else given or ()) if word)


def limit(body: Any, *names: str) -> int | None:
    """The first of these fields that is set: how many tokens an answer may have. ApiError below -1, which stands for no limit."""
    for name in names:
        value = getattr(body, name)
        if value is not None:
            if value < -1:
                raise ApiError(400, f"{name} must be at least 0, or -1 for no limit, not {value}", param=name)
            return int(value)
    return None


def between(name: str, value: int | None, least: int, most: int) -> int | None:
    """The value, or ApiError when it is outside."""
    if value is not None and not least <= value <= most:
        raise ApiError(400, f"{name} must be between {least} and {most}, not {value}", param=name)
    return value


def grammar_of(body: LlamaFields) -> Output | None:
    """The form that llama.cpp's fields ask for."""
    if body.grammar and body.json_schema is not None:
        raise ApiError(400, "give json_schema or grammar, not both", param="grammar")
    if body.grammar:
        return Output("grammar", body.grammar, "grammar")
    return None if body.json_schema is None else Output("json_schema", body.json_schema, "json_schema")
