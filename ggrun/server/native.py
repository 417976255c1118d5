"""llama.cpp's small routes: /props, /tokenize, /detokenize, /apply-template, /lora-adapters, and what it has that is not here."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun import Sampling, __version__
from ggrun.errors import GgrunError
from ggrun.server import body
from ggrun.server.errors import ApiError
from ggrun.server.operation import operation
from ggrun.server.settings import Settings
from ggrun.server.shelf import OpenModel, Shelf
from ggrun.server.streaming import json_response
from ggrun.text import Tokenizer


class Tokenize(msgspec.Struct):
    """What /tokenize takes, with llama.cpp's defaults."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class Detokenize(msgspec.Struct):
    """What /detokenize takes."""

    tokens: list[int]
    model: str | None = None


class ApplyTemplate(msgspec.Struct):
    """What /apply-template takes: of a chat completion's fields, those a template sees."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    model: str | None = None


@operation("The tokens of a text", request=Tokenize, answer="ids, with their pieces if asked")
async def tokenize(request: Request) -> Response:
    """The ids of a text, with their pieces if asked: strings, or lists of bytes where a piece is no whole text."""
    asked = await body.read(request, Tokenize)
    async with _shelf(request).use(asked.model) as model:
        tokenizer = model.engine.tokenizer
        ids = await asyncio.to_thread(tokenizer.encode, asked.content, asked.add_special, asked.parse_special)
        return json_response({"tokens": [{"id": id, "piece": _piece(tokenizer, id)} for id in ids] if asked.with_pieces else ids})


@operation("The text of tokens", request=Detokenize)
async def detokenize(request: Request) -> Response:
    """The text of ids, special tokens written out."""
    asked = await body.read(request, Detokenize)
    async with _shelf(request).use(asked.model) as model:
        tokenizer, n_vocab = model.engine.tokenizer, model.engine.spec.n_vocab
        for i, id in enumerate(asked.tokens):
            if not 0 <= id < n_vocab:
                raise ApiError(400, f"tokens[{i}]: {id} is outside the model's vocabulary of {n_vocab}", param=f"tokens[{i}]")
        text = await asyncio.to_thread(lambda: tokenizer.decode(asked.tokens, skip_special=False))
        return json_response({"content": text})


@operation("The prompt a conversation becomes", request=ApplyTemplate)
async def apply_template(request: Request) -> Response:
    """The prompt a conversation becomes; nothing is computed."""
    asked = await body.read(request, ApplyTemplate)
    settings: Settings = request.app.state.settings
    async with _shelf(request).use(asked.model) as model:
        variables = {**settings.template, **model.defaults.template, **asked.chat_template_kwargs}
        if asked.reasoning_effort is not None:
            variables["reasoning_effort"] = asked.reasoning_effort
        template = model.engine.chat_template
        chat = await asyncio.to_thread(template.render, asked.messages, asked.tools, asked.add_generation_prompt, variables)
        return json_response({"prompt": chat.text, **({"notes": chat.notes} if chat.notes else {})})


@operation("What the server is and what it takes for granted", query={"model": "of which model"})
async def props(request: Request) -> Response:
    """What the server is and what requests have that do not say otherwise, under llama.cpp's names."""
    shelf, name = _shelf(request), request.query_params.get("model")
    told: dict[str, dict[str, Any]] = request.app.state.props
    state = next((one for one in shelf.models() if name is None or name in (one.name, *one.aliases)), None)
    if state and state.state == "sleeping" and state.name in told:  # who looks now and then neither wakes a model nor keeps it awake
        return json_response(told[state.name] | {"is_sleeping": True})
    if state and state.model:
        told[state.name] = _props(state.model, request.app.state.settings)
        return json_response(told[state.name])
    async with shelf.use(name) as model:
        told[model.name] = _props(model, request.app.state.settings)
        return json_response(told[model.name])


def _props(model: OpenModel, settings: Settings) -> dict[str, Any]:
    shape, special = model.engine.plan.shape, model.engine.tokenizer
    return {
        "default_generation_settings": {"n_ctx": shape.n_ctx, "params": generation_settings(model, settings)},
        "total_slots": shape.n_seqs,
        "model_alias": model.name,
        "model_path": str(model.path or model.name),
        "chat_template": model.engine.chat_template.source,
        "chat_template_caps": {},
        "modalities": {"vision": False, "audio": False, "video": False},
        "bos_token": _text(special, special.bos_id),
        "eos_token": _text(special, special.eos_id),
        "build_info": f"ggrun {__version__}",
        "is_sleeping": False,
        "webui": settings.webui,
    }


@operation("Change properties; only with --props", request=dict[str, Any])
async def change_props(request: Request) -> Response:
    """Only with --props, and then, as in llama-server, there is nothing to change yet."""
    if not request.app.state.settings.props:
        raise ApiError(501, "this server does not take POST /props; start it with --props")
    for name in await body.read(request, dict[str, Any]):
        raise ApiError(400, f"{name!r:.80} is no property that can be changed", param=name)
    return json_response({"success": True})


@operation("Adapters: none are supported", request={"POST": list[Any]})
async def lora_adapters(request: Request) -> Response:
    """None: adapters are not supported."""
    wanted: list[Any] = await body.read(request, list) if request.method == "POST" else []
    if wanted:
        raise ApiError(501, "LoRA adapters are not supported")
    return json_response([])


@operation("Not supported yet", request=dict[str, Any])
async def rerank(request: Request) -> Response:
    raise ApiError(501, "reranking is not supported yet")


def generation_settings(model: OpenModel, settings: Settings) -> dict[str, Any]:
    """The sampling a request has that sets none, under llama.cpp's names."""
    sampling = Sampling(**model.defaults.sampling)
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    values |= {"typ_p": sampling.typical_p, "dynatemp_exp": sampling.dynatemp_exponent, "logit_bias": list(sampling.logit_bias)}
    return values | {
        "n_predict": model.defaults.n_predict,
        "max_tokens": model.defaults.n_predict,
        "n_keep": model.defaults.keep,
        "stop": list(model.defaults.stop),
        "reasoning_format": settings.reasoning_format,
        "stream": True,
        "n_probs": 0,
        "min_keep": 0,
        "grammar": "",
        "timings_per_token": False,
        "lora": [],
    }


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _piece(tokenizer: Tokenizer, id: int) -> str | list[int]:
    data = tokenizer.token_bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _text(tokenizer: Tokenizer, id: int | None) -> str:
    try:
        return "" if id is None else tokenizer.token_text(id)
    except GgrunError:
        return ""


ROUTES = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
    Route("/props", props),
    Route("/props", change_props, methods=["POST"]),
    Route("/lora-adapters", lora_adapters, methods=["GET", "POST"]),
    *(Route(path, rerank, methods=["POST"]) for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")),
]
