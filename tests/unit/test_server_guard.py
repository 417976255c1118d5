"""Who may ask: API keys, hosts, origins, CORS, and errors that nobody thought of."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ggrun.errors import GgrunError
from ggrun.server.errors import ApiError, ClientGone
from ggrun.server.settings import Settings, loopback
from tests.unit.fake_shelf import BASE, fake_app


async def fine(request: Request) -> Response:
    return PlainTextResponse("fine")


def client(*routes: Route, base: str = BASE, **settings: Any) -> TestClient:
    return TestClient(fake_app(Settings(**settings), Route("/fine", fine, methods=["GET", "POST"]), *routes), base)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer two "}, 200),
        ({"x-api-key": "two"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer on"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "one"}, 401),
        ({"authorization": "Basic one"}, 401),
        ({"x-api-key": "one two"}, 401),
        ({"authorization": b"Bearer \xff\xfe"}, 401),
        ({"authorization": "Bearer wrong", "x-api-key": "one"}, 200),
    ],
)
def test_keys(headers: dict[str, Any], status: int) -> None:
    answer = client(api_keys=("one", "two")).get("/fine", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(("key", "status"), [("schlüssel".encode(), 200), ("schlüssel".encode("latin-1"), 401)])
def test_a_key_that_is_no_ascii(key: bytes, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + key)]
    scope = {"type": "http", "method": "GET", "path": "/fine", "headers": headers, "query_string": b""}
    asyncio.run(fake_app(Settings(api_keys=("schlüssel",)), Route("/fine", fine))(scope, None, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_needs_no_key(path: str) -> None:
    assert client(api_keys=("one",)).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/props", "/slots", "/metrics", "/v1/models/x", "/v1/nothing", "/health/", "/openapi.json", "/static"])
def test_everything_else_does(path: str) -> None:
    assert client(api_keys=("one",), metrics=True).get(path).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("127.0.0.2", 200),
        ("app.localhost", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.5", 403),
        ("host.docker.internal:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("[", 403),
        ("", 403),
        ("a@127.0.0.1", 403),
    ],
)
def test_hosts(host: str, status: int) -> None:
    answer = client().get("/fine", headers={"host": host})
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["error"]["type"] == "permission_error"


def test_hosts_that_are_let_in() -> None:
    assert client(allowed_hosts=("host.docker.internal",)).get("/fine", headers={"host": "host.docker.internal:8080"}).status_code == 200
    assert client(hosts=("192.168.1.5",)).get("/fine", headers={"host": "192.168.1.5:80"}).status_code == 200
    assert client(hosts=("0.0.0.0",)).get("/fine", headers={"host": "mybox.lan:8080"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8080", 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost:8080", 403),
        ("null", 403),
        ("vscode-webview://abc", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_origins(origin: str, status: int, method: str) -> None:
    answer = client().request(method, "/fine", headers={"origin": origin})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_page_gets_nothing_before_the_handler_runs() -> None:
    ran = []

    async def act(request: Request) -> Response:
        ran.append(True)
        return PlainTextResponse("done")

    assert client(Route("/act", act, methods=["POST"])).post("/act", headers={"origin": "http://evil.example"}).status_code == 403
    assert not ran


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        (("http://app.example",), "http://app.example", 200),
        (("http://app.example",), "HTTP://App.example", 200),
        (("http://app.example",), "https://app.example", 403),
        (("http://app.example",), "http://app.example.evil", 403),
        (("localhost",), "http://localhost:3000", 200),
        (("localhost",), "http://127.0.0.1:5173", 200),
        (("localhost",), "http://localhost.evil.example", 403),
        (("*",), "https://any.example", 200),
        (("*",), "null", 200),
    ],
)
def test_cors(allowed: tuple[str, ...], origin: str, status: int) -> None:
    http = client(cors_origins=allowed, api_keys=("one",))
    answer = http.get("/fine", headers={"origin": origin, "x-api-key": "one"})
    assert answer.status_code == status
    ask = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = http.options("/v1/chat/completions", headers=ask)
    if status == 200:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
    else:
        assert preflight.status_code == 403


def test_errors_carry_cors_too() -> None:
    answer = client(cors_origins=("*",), api_keys=("one",)).get("/fine", headers={"origin": "http://a.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "http://a.example")


def test_headers_that_are_too_large() -> None:
    answer = client(max_headers=2000).get("/fine", headers={"x-long": "a" * 2000})
    assert (answer.status_code, answer.headers["connection"]) == (431, "close")


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/fine", "DELETE", 405), ("/v1/../none", "GET", 404)])
def test_paths_and_methods(path: str, method: str, status: int) -> None:
    answer = client().request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ZeroDivisionError("secret"), 500), (GgrunError("a sentence"), 400), (ApiError(418, "tea"), 418), (RecursionError(), 500)],
)
def test_faults_become_answers(error: Exception, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    async def break_(request: Request) -> Response:
        raise error

    answer = client(Route("/v1/break", break_)).get("/v1/break")
    assert answer.status_code == status
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    said = capsys.readouterr().err
    assert ("error: /v1/break" in said) == (status == 500)
    assert "Traceback" not in said


def test_a_client_that_went_away_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    async def leave(request: Request) -> Response:
        raise ClientGone

    with pytest.raises(AssertionError):  # the test client expects a response; nobody is there to get one
        client(Route("/leave", leave)).get("/leave")
    assert capsys.readouterr().err == ""


def test_verbose_tells_of_requests(capsys: pytest.CaptureFixture[str]) -> None:
    http = client(verbose=True)
    http.get("/fine")
    http.get("/none%0a%1b[31m")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1:4] for line in lines] == [["GET", "/fine", "200"], ["GET", "/none\\n\\x1b[31m", "404"]]


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False), ("::", False), ("192.168.1.2", False)],
)
def test_loopback(host: str, alone: bool) -> None:
    assert loopback(host) == alone
    assert Settings(hosts=(host,)).wide != alone
