"""One client's connection: uvicorn's protocol, with limits on how many there are, and on how large and slow a request's head may be."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggrun.server.settings import Settings

PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The class of connections: httptools' parser where it is installed, else h11's."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    class Connection(_Limits, base):  # type: ignore[misc]
        limits = settings

    return Connection


class _Limits:
    """What is added to uvicorn's protocol. A request's head is read while there is no cycle, or the last one's response is complete."""

    limits: Settings
    connections: set[Any]
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._late: asyncio.TimerHandle | None = None
        self._unread = 0
        super().connection_made(transport)  # type: ignore[misc]
        if len(self.connections) > self.limits.max_connections > 0:
            self._refuse(503, f"{self.limits.max_connections} connections are open already; try again later")
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before = self.cycle
        reading = before is None or before.response_complete
        if reading:
            self._await_head()
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not before:
            self._head_came()
            if self.cycle.scope["http_version"] == "1.0":
                _end_with_connection(self.cycle)
        elif reading and not self.transport.is_closing():
            self._unread += len(data)
            if self._unread > self.limits.max_headers:
                self._refuse(431, f"the request's headers are larger than {self.limits.max_headers >> 10} KiB")

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(400, "what came is not an HTTP request")

    def _await_head(self) -> None:
        if self._late is None and self.limits.read_timeout > 0:
            self._late = self.loop.call_later(self.limits.read_timeout, self._too_slow)

    def _head_came(self) -> None:
        self._unread = 0
        if self._late:
            self._late.cancel()
            self._late = None

    def _too_slow(self) -> None:
        self._late = None
        if self.transport.is_closing():
            return
        if not self._unread:  # a browser's connection for later, for instance
            self.transport.close()
        else:
            self._refuse(408, f"the request's headers did not arrive within {self.limits.read_timeout:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        """Answer by hand and close: there is no request yet that an application could answer."""
        self._head_came()
        kind = "unavailable_error" if status == 503 else "invalid_request_error"
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, PHRASES[status], len(body)) + body)
        self.transport.close()


def _end_with_connection(cycle: Any) -> None:
    """HTTP/1.0 knows no chunks, which uvicorn sends all the same: an answer without a length ends where its connection does."""
    send, unmeasured = cycle.send, False

    async def send_plain(message: Any) -> None:
        nonlocal unmeasured
        if message["type"] == "http.response.start":
            unmeasured = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if unmeasured:
                cycle.chunked_encoding = False
        elif unmeasured:
            cycle.expected_content_length = len(message.get("body", b""))  # what uvicorn holds the body to
        await send(message)

    cycle.send = send_plain
