"""Embeddings: OpenAI's /v1/embeddings, llama.cpp's /embedding and /embeddings, Ollama's /api/embed and /api/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.body import read
from ggrun.server.errors import ApiError
from ggrun.server.ollama import model_name
from ggrun.server.operation import operation
from ggrun.server.streaming import json_response, until_gone
from ggrun.server.vectors import Input, Vectors, embed, inputs_of, normalized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Encoding = Literal["float", "base64"]
Inputs = str | list[str | int | list[int]]
Norm = Annotated[int, Meta(ge=-1, le=64)]


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """The body of POST /v1/embeddings. dimensions: only the model's own number. user has no meaning here."""

    input: Inputs
    model: str | None = None
    encoding_format: Encoding | None = None
    dimensions: int | None = None
    user: str | None = None
    embd_normalize: Norm | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of POST /embedding: content, or input."""

    content: Inputs | None = None
    input: Inputs | None = None
    model: str | None = None
    encoding_format: Encoding | None = None
    embd_normalize: Norm | None = None


class EmbedRequest(msgspec.Struct, kw_only=True):
    """The body of POST /api/embed. options and keep_alive have no effect. truncate: cut inputs that are too long; otherwise refused."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class OldEmbedRequest(msgspec.Struct, kw_only=True):
    """The body of POST /api/embeddings, Ollama's older form."""

    model: str
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


@operation("Embed texts", request=EmbeddingsRequest, answer="a normalized vector for each input")
async def openai(request: Request) -> Response:
    """POST /v1/embeddings."""
    asked = await read(request, EmbeddingsRequest)
    name, vectors = await _vectors(request, asked.model, inputs_of(asked.input, "input"), "input", asked.dimensions)
    rows = await _written(vectors, asked.embd_normalize, asked.encoding_format)
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": vectors.n_tokens, "total_tokens": vectors.n_tokens}
    return json_response({"object": "list", "data": data, "model": name, "usage": usage})


@operation("Embed texts, in llama.cpp's shape", request=EmbeddingRequest, answer="a list of {index, embedding: [vector]}")
async def llama_cpp(request: Request) -> Response:
    """POST /embedding and /embeddings."""
    asked = await read(request, EmbeddingRequest)
    param = "content" if asked.content is not None else "input"
    given = asked.content if asked.content is not None else asked.input
    if given is None:
        raise ApiError(400, "content is missing: a text, token ids, or a list of them", param="content")
    _, vectors = await _vectors(request, asked.model, inputs_of(given, param), param)
    rows = await _written(vectors, asked.embd_normalize, asked.encoding_format)
    return json_response([{"index": i, "embedding": [row]} for i, row in enumerate(rows)])


@operation("Embed texts, as Ollama does", request=EmbedRequest, answer="a normalized vector for each input")
async def ollama(request: Request) -> Response:
    """POST /api/embed."""
    started = perf_counter_ns()
    asked = await read(request, EmbedRequest)
    answer = {"embeddings": [], "total_duration": 0, "load_duration": 0, "prompt_eval_count": 0}
    if asked.input == []:  # asks for the model to be loaded
        async with request.app.state.shelf.use(model_name(request, asked.model)) as model:
            return json_response({"model": model.name, **answer})
    inputs = inputs_of(asked.input, "input")
    name, vectors = await _vectors(request, model_name(request, asked.model), inputs, "input", asked.dimensions, asked.truncate is True)
    answer |= {"embeddings": await _written(vectors), "prompt_eval_count": vectors.n_tokens}
    return json_response({"model": name, **answer, "total_duration": perf_counter_ns() - started})


@operation("Embed a text, in Ollama's older form", request=OldEmbedRequest, answer="a vector, not normalized")
async def ollama_old(request: Request) -> Response:
    """POST /api/embeddings."""
    asked = await read(request, OldEmbedRequest)
    _, vectors = await _vectors(request, model_name(request, asked.model), [asked.prompt], "prompt")
    return json_response({"embedding": (await _written(vectors, -1))[0]})


async def _vectors(
    request: Request, name: str | None, inputs: Sequence[Input], param: str, dimensions: int | None = None, truncate: bool = False
) -> tuple[str, Vectors]:
    """The name of the model, and what it makes of the inputs; stopped when the client goes away."""

    async def work() -> tuple[str, Vectors]:
        async with request.app.state.shelf.use(name) as model:
            n_embd = model.engine.spec.n_embd
            if dimensions not in (None, n_embd):
                raise ApiError(400, f"dimensions is not supported: this model's vectors have {n_embd}", param="dimensions")
            return model.name, await embed(model, request.app.state.settings, inputs, param, truncate)

    return await until_gone(request, work())


async def _written(vectors: Vectors, norm: int | None = None, encoding: Encoding | None = None) -> list[msgspec.Raw]:
    """Each row, normalized, as JSON: a list of numbers, or base64 of little-endian float32. In a thread: there may be millions of them."""

    def written(row: NDArray[np.float32]) -> msgspec.Raw:
        scaled = normalized(row, 2 if norm is None else norm).astype("<f4")
        return msgspec.Raw(msgspec.json.encode(base64.b64encode(scaled.tobytes()).decode() if encoding == "base64" else scaled.tolist()))

    return await asyncio.to_thread(lambda: [written(row) for row in vectors.rows])


ROUTES: Final = [
    Route("/v1/embeddings", openai, methods=["POST"]),
    Route("/embedding", llama_cpp, methods=["POST"]),
    Route("/embeddings", llama_cpp, methods=["POST"], name="embeddings_short"),
    Route("/api/embed", ollama, methods=["POST"]),
    Route("/api/embeddings", ollama_old, methods=["POST"]),
]
