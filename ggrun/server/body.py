"""A request's body: its type, size and time checked, then decoded into a msgspec Struct; errors name the field.

class Question(msgspec.Struct):
    text: str

question = await read(request, Question)
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ggrun.server.errors import ApiError, ClientGone

if TYPE_CHECKING:
    from starlette.requests import Request

    from ggrun.server.settings import Settings

T = TypeVar("T")
CLOSE = {"connection": "close"}
DRAIN_SECONDS = 2.0  # how long what is too large is still read, so that its sender can read why
MOST_WARNINGS = 100

_warned: set[tuple[str, str]] = set()


async def read(request: Request, kind: type[T]) -> T:
    """The body as a `kind`. Raises ApiError: 415 for another content type, 413, 408, or 400 with the path of the field at fault.

    Fields that `kind` has not are told of once, on stderr.
    """
    if not _is_json(request.headers.get("content-type") or _unsaid(request)):
        raise ApiError(415, "send the body as JSON, with the header Content-Type: application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "send the body as it is, without a Content-Encoding", code="unsupported_media_type")
    return decoded(await raw(request), kind, request.url.path)


async def raw(request: Request) -> bytes:
    """The bytes of the body. Raises ApiError 413 or 408, and ClientGone."""
    settings: Settings = request.app.state.settings
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_body:
        if "expect" not in request.headers:  # else it waits for our word and has sent nothing yet
            await _drain(request)
        raise _too_large(settings)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.read_timeout or None):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > settings.max_body:
                    break
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the request's body did not arrive within {settings.read_timeout:g} seconds", headers=CLOSE) from None
    parts.clear()
    await _drain(request)
    raise _too_large(settings)


def decoded(data: bytes, kind: type[T], path: str = "") -> T:
    """JSON as a `kind`, or ApiError 400; `path` is the route's, for what is told of unknown fields."""
    key: Any = kind
    known = _names(key)
    try:
        value: T = _decoder(key).decode(data)
        names = msgspec.json.decode(data, type=dict[str, msgspec.Raw]) if known is not None else ()
    except msgspec.ValidationError as error:
        message, param = _field(str(error))
        raise ApiError(400, f"{param}: {message}" if param else message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # names that nobody reads are not checked before the second decoding
        what = "is empty" if not data.strip() else f"is not valid JSON: {error}"
        raise ApiError(400, f"the request's body {what}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the request's body is nested too deeply", code="invalid_json") from None
    for name in names:
        if known is not None and name not in known:
            _warn(path, name)
    return value


def _unsaid(request: Request) -> str:
    """The type of a body without one: some programs send Ollama's requests so. A page's would have an Origin, or a form's type."""
    return "application/json" if request.url.path.startswith("/api/") and "origin" not in request.headers else ""


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _too_large(settings: Settings) -> ApiError:
    return ApiError(413, f"the request's body is larger than {settings.max_body >> 20} MiB", code="request_too_large", headers=CLOSE)


async def _drain(request: Request) -> None:
    """Read on for a moment and forget what comes: a connection that is closed on unread bytes is reset, and its answer lost."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while (message := await request.receive()).get("more_body", False):
                if message["type"] == "http.disconnect":
                    raise ClientGone
    except TimeoutError:
        pass


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _names(kind: Any) -> frozenset[str] | None:
    """The names a Struct's JSON may have; None for what is no Struct."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return None
    tag = kind.__struct_config__.tag_field
    return frozenset([*(field.encode_name for field in msgspec.structs.fields(kind)), *([tag] if tag else [])])


def _field(text: str) -> tuple[str, str | None]:
    """("expected `int`, got `str`", "messages[0].content") from msgspec's "Expected ... - at `$.messages[0].content`"."""
    found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", text, re.DOTALL)
    assert found
    message, param = found[1], found[2]
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        message = "this field is required"
    return message[:1].lower() + message[1:], param or None


def _warn(path: str, name: str) -> None:
    if (path, name) not in _warned and len(_warned) < MOST_WARNINGS:
        _warned.add((path, name))
        print(f"{path}: the request's field {name!r:.80} is not known here and has no effect", file=sys.stderr, flush=True)
