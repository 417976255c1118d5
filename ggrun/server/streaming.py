"""Answers that take their time: streams with keep-alive comments, and whole answers whose client is watched meanwhile.

Whatever ends a stream (its end, an error, the client gone, the time limit, the server's shutdown), the generator behind it is closed
at once, and with it the generations it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from ggrun.server import errors
from ggrun.server.errors import STOPPING, ApiError, ClientGone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
Chunks = AsyncGenerator[bytes, None]
COMMENT = b": keep-alive\n\n"


def event(data: bytes, name: str | None = None) -> bytes:
    """A server-sent event. data: one line, such as JSON."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"


def event_stream(request: Request, chunks: Chunks, after: Callable[[], Awaitable[object]] | None = None) -> Response:
    """A response of server-sent events: `chunks` yields whole frames (see `event`); silence is bridged by comments.

    Before the first frame an exception still becomes a response with its status; later it becomes the stream's last event. `after` is
    awaited once, whatever happens.
    """
    return Stream(request, chunks, "text/event-stream", COMMENT, after)


def line_stream(request: Request, chunks: Chunks, after: Callable[[], Awaitable[object]] | None = None) -> Response:
    """The same for JSON lines, as Ollama streams; these have no comments."""
    return Stream(request, chunks, "application/x-ndjson", b"", after)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away (ClientGone), time is up, or the server stops (ApiError)."""
    task = asyncio.create_task(work)
    watch = Watch(request.app.state, request.receive)
    try:
        await watch.race(task)
        if not task.done():
            raise watch.reason()
        return task.result()
    finally:
        await _ended(task)
        await watch.close()


class Watch:
    """What may end an answer early: its client, its time, and the server's shutdown. Needs a running loop."""

    def __init__(self, state: Any, receive: Receive) -> None:
        self._gone: asyncio.Future[None] = asyncio.ensure_future(_gone(receive))
        self._cut: asyncio.Future[object] = asyncio.ensure_future(state.lifetime.cut.wait())
        self._seconds: float = state.settings.timeout
        self._deadline = asyncio.get_running_loop().time() + self._seconds if self._seconds > 0 else None

    async def race(self, task: asyncio.Future[Any], seconds: float | None = None) -> None:
        """Wait until the task is done, something ends the answer, or so many seconds are over."""
        left = [] if seconds is None else [seconds]
        if self._deadline is not None:
            left.append(max(0.0, self._deadline - asyncio.get_running_loop().time()))
        await asyncio.wait({task, self._gone, self._cut}, timeout=min(left, default=None), return_when=asyncio.FIRST_COMPLETED)

    @property
    def over(self) -> bool:
        """Whether the answer has to end now."""
        late = self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline
        return late or self._gone.done() or self._cut.done()

    def reason(self) -> Exception:
        """Why."""
        if self._gone.done():
            return ClientGone()
        if self._cut.done():
            return ApiError(503, STOPPING)
        return ApiError(504, f"the answer took longer than the {self._seconds:g} seconds of --timeout")

    async def close(self) -> None:
        for task in (self._gone, self._cut):
            await _ended(task)


class Stream(Response):
    """A body that comes in pieces. See `event_stream`."""

    def __init__(
        self, request: Request, chunks: Chunks, media_type: str, comment: bytes, after: Callable[[], Awaitable[object]] | None
    ) -> None:
        self.status_code, self.background = 200, None
        self._request, self._chunks, self._comment, self._after = request, chunks, comment, after
        self._started = False
        self.init_headers({"content-type": f"{media_type}; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = Watch(self._request.app.state, receive)
        try:
            await self._pump(watch, send)
        except ClientGone:
            pass
        except Exception as error:
            told = errors.told(error)
            if told.status >= 500 and not isinstance(error, ApiError):
                errors.log(error, scope["path"])
            if not self._started:
                await errors.response(told, scope["path"])(scope, receive, send)
                return
            await self._send(send, errors.event(told, scope["path"]), more=False)
        finally:
            await watch.close()
            await self._chunks.aclose()
            if self._after:
                await self._after()

    async def _pump(self, watch: Watch, send: Send) -> None:
        silence = self._request.app.state.settings.keep_alive if self._comment else None
        pull = asyncio.ensure_future(anext(self._chunks, None))
        try:
            while True:
                await watch.race(pull, silence)
                if pull.done():
                    chunk = pull.result()
                    if chunk is None:
                        break
                    pull = asyncio.ensure_future(anext(self._chunks, None))
                    await self._send(send, chunk)
                elif watch.over:
                    raise watch.reason()
                else:
                    await self._send(send, self._comment)
        finally:
            await _ended(pull)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer, written by msgspec."""
    import msgspec

    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended; what it raises then is of no interest."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    elif not task.cancelled():
        task.exception()
