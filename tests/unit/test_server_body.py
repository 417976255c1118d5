"""Bodies: what is read, what is refused, and how the field at fault is named."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ggrun.server import body
from ggrun.server.errors import ApiError, ClientGone
from ggrun.server.settings import Settings
from ggrun.server.streaming import json_response
from tests.unit.fake_shelf import BASE, fake_app

JSON = {"content-type": "application/json"}


class Part(msgspec.Struct):
    text: str


class Question(msgspec.Struct):
    text: str
    parts: list[Part] = []
    n: int = 1
    x: float = 0.0
    more: dict[str, Any] = {}


async def ask(request: Request) -> Response:
    return json_response(await body.read(request, Question))


@pytest.fixture
def client() -> Iterator[TestClient]:
    routes = [Route(path, ask, methods=["POST"]) for path in ("/ask", "/v1/ask", "/api/ask")]
    app = fake_app(Settings(max_body=1 << 20), *routes)
    with TestClient(app, BASE) as http:
        yield http


def test_a_body_is_read(client: TestClient) -> None:
    answer = client.post("/ask", json={"text": "ä", "parts": [{"text": "b"}], "n": 3})
    assert answer.status_code == 200
    assert answer.json() == {"text": "ä", "parts": [{"text": "b"}], "n": 3, "x": 0.0, "more": {}}


@pytest.mark.parametrize(
    ("content", "param", "words"),
    [
        ('{"text": 3}', "text", "text: expected `str`, got `int`"),
        ("{}", "text", "text: this field is required"),
        ('{"text": "a", "parts": [{"text": "b"}, {}]}', "parts[1].text", "this field is required"),
        ('{"text": "a", "parts": [{"text": null}]}', "parts[0].text", "expected `str`, got `null`"),
        ('{"text": "a", "n": 1.5}', "n", "expected `int`"),
        ('{"text": "a", "n": true}', "n", "expected `int`, got `bool`"),
        ("[]", None, "expected `object`, got `array`"),
        ("", None, "the request's body is empty"),
        ("  ", None, "the request's body is empty"),
        ('{"text": ', None, "is not valid JSON"),
        ("{'text': 1}", None, "is not valid JSON"),
        ('{"text": "a"} x', None, "is not valid JSON"),
        ('{"text": "a", "x": NaN}', None, "is not valid JSON"),
        ('{"text": "a", "x": 1e999}', "x", "number out of range"),
        ('{"text": "a", "more": {"a":' + "[" * 100000 + "]" * 100000 + "}}", None, "nested too deeply"),
        ('{"text": "\\ud800"}', None, "is not valid JSON"),
    ],
)
def test_what_cannot_be_is_named(content: str, param: str | None, words: str, client: TestClient) -> None:
    answer = client.post("/v1/ask", content=content.encode(), headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words.lower() in error["message"].lower()


@pytest.mark.parametrize("content", [b'{"text": "\xff\xfe"}', b'{"text": "a", "\xe0": 1}', b'{"text": "a", "u": {"\xe0": 1}}'])
def test_bytes_that_are_no_text(content: bytes, client: TestClient) -> None:
    answer = client.post("/ask", content=content, headers=JSON)
    assert answer.status_code == (200 if b'"u"' in content else 400)  # what lies within an unknown field is not looked at


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_only_json(kind: str, client: TestClient) -> None:
    answer = client.post("/ask", content=b'{"text": "a"}', headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/ask", {}, 200),
        ("/api/ask", {"origin": "http://127.0.0.1:8080"}, 415),
        ("/api/ask", {"content-type": "text/plain"}, 415),
        ("/ask", {}, 415),
    ],
)
def test_programs_leave_out_the_type_of_ollamas_requests(path: str, headers: dict[str, str], status: int, client: TestClient) -> None:
    assert client.post(path, content=b'{"text": "a"}', headers=headers).status_code == status


def test_a_packed_body_is_named(client: TestClient) -> None:
    answer = client.post("/ask", content=gzip.compress(b'{"text": "a"}'), headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["error"]["message"]
    assert client.post("/ask", content=b'{"text": "a"}', headers={**JSON, "content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_ways_to_write_json(kind: str, client: TestClient) -> None:
    assert client.post("/ask", content=b'{"text": "a"}', headers={"content-type": kind}).status_code == 200


def test_too_large(client: TestClient) -> None:
    answer = client.post("/ask", content=b'{"text": "' + b"a" * (1 << 20) + b'"}', headers=JSON)
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"


def test_too_large_without_a_length(client: TestClient) -> None:
    pieces = (b"a" * 65536 for _ in range(40))
    assert client.post("/ask", content=pieces, headers=JSON).status_code == 413


def test_unknown_fields_are_told_once(client: TestClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_warned", set())
    for _ in range(3):
        assert client.post("/ask", json={"text": "a", "colour": 1, "evil\n\x1b[31m": 2}).status_code == 200
    err = capsys.readouterr().err
    assert err.count("'colour'") == 1
    assert err.count("\n") == 2
    assert "\x1b" not in err


def request_of(messages: AsyncIterator[dict[str, Any]], **settings: Any) -> Request:
    app = fake_app(Settings(**settings))
    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [(b"content-type", b"application/json")], "app": app}
    return Request(scope, lambda: anext(messages))


def test_a_body_that_does_not_come() -> None:
    async def slow() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b'{"te', "more_body": True}
        await asyncio.sleep(60)

    with pytest.raises(ApiError, match="did not arrive within 0.05 seconds") as raised:
        asyncio.run(body.read(request_of(slow(), read_timeout=0.05), Question))
    assert raised.value.status == 408
    assert raised.value.headers == {"connection": "close"}


def test_a_client_that_leaves_in_the_middle() -> None:
    async def leaving() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b'{"te', "more_body": True}
        yield {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        asyncio.run(body.read(request_of(leaving()), Question))
