"""Errors: each API's shape, and what a client is told of an exception."""

import json

import pytest

from ggrun.engine.engine import ContextExceeded
from ggrun.errors import GgrunError
from ggrun.server import errors
from ggrun.server.errors import ApiError

ERROR = ApiError(400, "too hot", code="hot", param="temperature")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "hot"}}),
        ("/embeddings", {"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "hot"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "invalid_request_error", "message": "temperature: too hot"}}),
        ("/v1/messages/count_tokens", {"type": "error", "error": {"type": "invalid_request_error", "message": "temperature: too hot"}}),
        ("/api/chat", {"error": "temperature: too hot"}),
        ("/tokenize", {"error": {"code": 400, "message": "too hot", "type": "invalid_request_error", "param": "temperature"}}),
        ("/", {"error": {"code": 400, "message": "too hot", "type": "invalid_request_error", "param": "temperature"}}),
    ],
)
def test_the_path_decides_the_shape(path: str, body: object) -> None:
    response = errors.response(ERROR, path)
    assert json.loads(response.body) == body
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")


@pytest.mark.parametrize(
    ("status", "type", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (404, "not_found_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (501, "not_supported_error", "invalid_request_error"),
        (503, "unavailable_error", "overloaded_error"),
    ],
)
def test_types_belong_to_statuses(status: int, type: str, anthropic: str) -> None:
    error = ApiError(status, "no")
    assert json.loads(errors.shape(error, "/v1/x"))["error"]["type"] == type
    assert json.loads(errors.shape(error, "/v1/messages"))["error"]["type"] == anthropic


def test_an_overlong_prompt_names_both_numbers() -> None:
    error = ContextExceeded(9, 8)
    told = errors.told(error)
    assert told.status == 400
    body = json.loads(errors.shape(told, "/completion"))["error"]
    assert (body["type"], body["n_prompt_tokens"], body["n_ctx"], body["code"]) == ("exceed_context_size_error", 9, 8, 400)
    assert json.loads(errors.shape(told, "/v1/completions"))["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OverflowError("int too large to convert to float"), 400, "too large"),
        (GgrunError("the prompt is empty"), 400, "the prompt is empty"),
        (TimeoutError(), 504, "--timeout"),
        (MemoryError(), 500, "out of memory"),
        (ZeroDivisionError("secret detail"), 500, "something in ggrun went wrong (ZeroDivisionError)"),
    ],
)
def test_what_is_told_of_exceptions(error: Exception, status: int, words: str) -> None:
    told = errors.told(error)
    assert told.status == status
    assert words in told.message
    assert "secret" not in told.message


@pytest.mark.parametrize(
    ("path", "frame"),
    [
        ("/v1/chat/completions", b'data: {"error": {"message": "no"'),
        ("/v1/messages", b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"'),
        ("/v1/responses", b'event: error\ndata: {"type": "error", "code": "unavailable_error", "message": "no"'),
        ("/api/chat", b'{"error": "no"}\n'),
    ],
)
def test_the_last_frame_of_a_stream(path: str, frame: bytes) -> None:
    last = errors.event(ApiError(503, "no"), path)
    assert last.startswith(frame)
    assert last.endswith(b"\n" if path.startswith("/api/") else b"\n\n")


def test_lone_surrogates_do_not_break_an_error() -> None:
    assert b"no ?" in errors.shape(ApiError(400, "no \ud800"), "/v1/x")
