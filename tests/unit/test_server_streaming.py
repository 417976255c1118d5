"""Streams and whole answers: keep-alive comments, clients that go away, time limits, shutdown; the generator is always closed."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from ggrun.server.errors import ApiError, ClientGone
from ggrun.server.settings import Settings
from ggrun.server.streaming import event, event_stream, line_stream, until_gone
from tests.unit.fake_shelf import fake_app


class Client:
    """The other end of one request. `leave` closes its connection; `sent` is what it got."""

    def __init__(self, path: str = "/v1/x", **settings: Any) -> None:
        self.app = fake_app(Settings(**settings))
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.closed: list[str] = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "app": self.app}
        self.request = Request(scope, self.receive)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if "status" in message]

    async def after(self) -> None:
        self.closed.append("after")

    async def frames(self, *steps: bytes | float | Exception) -> AsyncGenerator[bytes, None]:
        """Yields bytes, sleeps numbers, raises exceptions."""
        try:
            for step in steps:
                if isinstance(step, bytes):
                    yield event(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed.append("frames")

    async def stream(self, *steps: bytes | float | Exception, make: Any = event_stream) -> None:
        await make(self.request, self.frames(*steps), self.after)(self.request.scope, self.receive, self.send)


def test_an_event() -> None:
    assert event(b"{}") == b"data: {}\n\n"
    assert event(b"{}", "done") == b"event: done\ndata: {}\n\n"


async def whole() -> Client:
    client = Client()
    await client.stream(b"one", b"two")
    return client


def test_a_whole_stream() -> None:
    client = asyncio.run(whole())
    assert client.body == b"data: one\n\ndata: two\n\n"
    assert dict(client.sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert [message.get("more_body") for message in client.sent] == [None, True, True, False]
    assert client.closed == ["frames", "after"]


def run(
    steps: tuple[Any, ...], meanwhile: Callable[[Client], Awaitable[None]] | None = None, make: Any = event_stream, **given: Any
) -> Client:
    async def both() -> Client:
        client = Client(**given)
        other = asyncio.ensure_future(meanwhile(client)) if meanwhile else None
        async with asyncio.timeout(5):
            await client.stream(*steps, make=make)
        if other:
            await other
        return client

    return asyncio.run(both())


def test_silence_is_bridged_by_comments() -> None:
    client = run((0.12, b"late"), keep_alive=0.05)
    assert client.body == b": keep-alive\n\n: keep-alive\n\ndata: late\n\n"


def test_lines_have_no_comments() -> None:
    client = run((0.12, b"late"), make=line_stream, keep_alive=0.02)
    assert client.body == b"data: late\n\n"
    assert dict(client.sent[0]["headers"])[b"content-type"].startswith(b"application/x-ndjson")


def test_a_client_that_goes_away_closes_the_generator_at_once() -> None:
    async def leave(client: Client) -> None:
        await asyncio.sleep(0.05)
        client.gone.set()

    client = run((b"one", 60.0), leave)
    assert client.body == b"data: one\n\n"
    assert client.closed == ["frames", "after"]
    assert client.sent[-1]["more_body"] is True  # nothing is pretended to be whole


def test_shutdown_cuts_a_stream_with_an_error() -> None:
    async def stop(client: Client) -> None:
        await asyncio.sleep(0.05)
        client.app.state.lifetime.cut.set()

    client = run((b"one", 60.0), stop)
    assert client.body.startswith(b'data: one\n\ndata: {"error": {"message": "the server is shutting down"')
    assert client.sent[-1]["more_body"] is False
    assert client.closed == ["frames", "after"]


def test_time_is_up() -> None:
    client = run((b"one", 60.0), timeout=0.05)
    assert b"--timeout" in client.body
    assert client.closed == ["frames", "after"]


@pytest.mark.parametrize(("error", "status"), [(ApiError(400, "no"), 400), (ValueError("secret"), 500)])
def test_an_error_before_the_first_frame_has_its_status(error: Exception, status: int) -> None:
    client = run((error,))
    assert client.statuses == [status]
    assert b"secret" not in client.body
    assert client.closed == ["frames", "after"]


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/chat/completions", b'data: one\n\ndata: {"error": {"message": "no"'),
        ("/v1/messages", b"data: one\n\nevent: error\ndata: "),
        ("/api/chat", b'data: one\n\n{"error": "no"}\n'),
    ],
)
def test_an_error_later_is_the_last_event(path: str, last: bytes) -> None:
    client = run((b"one", ApiError(503, "no")), path=path)
    assert client.statuses == [200]
    assert client.body.startswith(last)
    assert client.sent[-1]["more_body"] is False


def test_a_client_that_reads_slowly_still_gets_all() -> None:
    async def both() -> Client:
        client = Client()

        async def send(message: Any) -> None:
            await asyncio.sleep(0.01)
            client.sent.append(message)

        client.send = send  # type: ignore[method-assign]
        await client.stream(*[b"%d" % i for i in range(20)])
        return client

    client = asyncio.run(both())
    assert client.body == b"".join(b"data: %d\n\n" % i for i in range(20))


async def answered(client: Client, seconds: float, error: Exception | None = None) -> str:
    async def work() -> str:
        try:
            await asyncio.sleep(seconds)
            if error:
                raise error
            return "done"
        finally:
            client.closed.append("work")

    async with asyncio.timeout(5):
        return await until_gone(client.request, work())


def test_a_whole_answer() -> None:
    async def one() -> str:
        return await answered(Client(), 0.01)

    assert asyncio.run(one()) == "done"


@pytest.mark.parametrize("way", ["gone", "cut", "time", "error"])
def test_what_ends_a_whole_answer(way: str) -> None:
    expected = {"gone": ClientGone, "cut": ApiError, "time": ApiError, "error": ValueError}[way]

    async def one() -> Client:
        client = Client(timeout=0.05 if way == "time" else 3600.0)
        loop = asyncio.get_running_loop()
        if way == "gone":
            loop.call_later(0.05, client.gone.set)
        if way == "cut":
            loop.call_later(0.05, client.app.state.lifetime.cut.set)
        with pytest.raises(expected) as raised:
            await answered(client, 0.0 if way == "error" else 60.0, ValueError())
        if expected is ApiError:
            assert raised.value.status == {"cut": 503, "time": 504}[way]
        return client

    assert asyncio.run(one()).closed == ["work"]


def test_nothing_is_left_behind() -> None:
    async def one() -> int:
        client = Client(keep_alive=0.01)
        await client.stream(b"one", 0.05, b"two")
        await answered(Client(), 0.01)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(one()) == 0
