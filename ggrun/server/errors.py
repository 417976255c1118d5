"""What goes wrong with a request, and how each API says it.

The path decides whose shape an error has: OpenAI's under /v1, Anthropic's for /v1/messages, Ollama's under /api, llama.cpp's elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from ggrun.engine.engine import ContextExceeded
from ggrun.errors import GgrunError

Shape = Callable[["ApiError"], dict[str, Any]]

# status: the type an error of that status has when nothing else is said
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}
STOPPING = "the server is shutting down"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is not answered: an HTTP status and a sentence for the client's author.

    type: None has the status's own. code: a word for programs. param: the path of the field at fault, such as `messages[0].content`.
    extra: more members of the error object. headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or TYPES.get(status, "invalid_request_error")
        self.extra = extra or {}
        self.headers = headers or {}


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


def openai(error: ApiError) -> dict[str, Any]:
    """OpenAI's; a code is a word or null, which some clients insist on."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.extra}}


def llama_cpp(error: ApiError) -> dict[str, Any]:
    """llama.cpp's: the code is the status."""
    param = {"param": error.param} if error.param else {}
    return {"error": {"code": error.status, "message": error.message, "type": error.type, **param, **error.extra}}


def anthropic(error: ApiError) -> dict[str, Any]:
    """Anthropic's, where types belong to statuses."""
    message = f"{error.param}: {error.message}" if error.param and error.param not in error.message else error.message
    type = ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": type, "message": message, **error.extra}}


def ollama(error: ApiError) -> dict[str, Any]:
    """Ollama's: a sentence."""
    return {"error": f"{error.param}: {error.message}" if error.param and error.param not in error.message else error.message}


# beginnings of paths, the first that fits decides; OpenAI's paths also work without /v1, as llama.cpp's do
SHAPES: tuple[tuple[str, Shape], ...] = (
    ("/v1/messages", anthropic),
    ("/api/", ollama),
    ("/v1/", openai),
    ("/chat/completions", openai),
    ("/completions", openai),
    ("/embeddings", openai),
    ("/responses", openai),
    ("/models", openai),
    ("", llama_cpp),
)


def shape(error: ApiError, path: str) -> bytes:
    """The JSON body that says an error to whoever asked at a path."""
    write = next(write for beginning, write in SHAPES if path.startswith(beginning))
    return json.dumps(write(error), ensure_ascii=False).encode("utf-8", "replace")


def response(error: ApiError, path: str) -> Response:
    """The whole response."""
    return Response(shape(error, path), error.status, dict(error.headers), "application/json")


def event(error: ApiError, path: str) -> bytes:
    """The last frame of a stream that ends with an error, in the form its clients know."""
    body = shape(error, path)
    if path.startswith("/v1/messages"):
        return b"event: error\ndata: " + body + b"\n\n"
    if path.startswith(("/v1/responses", "/responses")):
        told = {"type": "error", "code": error.code or error.type, "message": error.message, "param": error.param}
        return b"event: error\ndata: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"
    if path.startswith("/api/"):
        return body + b"\n"
    return b"data: " + body + b"\n\n"


def told(error: BaseException) -> ApiError:
    """What the client is told of an exception. Sentences for people are passed on as 400; anything else is ours, and 500."""
    match error:
        case ApiError():
            return error
        case ContextExceeded():
            counts = {"n_prompt_tokens": getattr(error, "n_prompt", None), "n_ctx": getattr(error, "n_ctx", None)}
            extra = {name: n for name, n in counts.items() if n is not None}
            return ApiError(400, str(error), "exceed_context_size_error", "context_length_exceeded", extra=extra)
        case GgrunError():
            return ApiError(400, str(error))
        case TimeoutError():
            return ApiError(504, "the answer took longer than the server allows (--timeout)")
        case OverflowError():
            return ApiError(400, "a number in the request is too large")
        case MemoryError():
            return ApiError(500, "the server ran out of memory for this request")
        case _:
            return ApiError(500, f"something in ggrun went wrong ({type(error).__name__}); the server's log says more")


def log(error: BaseException, doing: str) -> None:
    """Tell the server's own user of a fault: a sentence, and with GGRUN_DEBUG=1 where it happened."""
    if os.environ.get("GGRUN_DEBUG") == "1":
        from traceback import print_exception

        print_exception(error, file=sys.stderr)
    text = " ".join(str(error).split()) or "no details"
    print(f"error: {doing}: {type(error).__name__}: {text:.500} (GGRUN_DEBUG=1 shows where)", file=sys.stderr, flush=True)
