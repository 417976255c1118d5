"""From an application to a running server: sockets, limits on connections, signals, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ggrun.server.settings import Settings

BACKLOG = 2048
MARGIN = 0.5  # seconds of the shutdown kept for writing last events and closing the engine
KILLED = 130
STALLED = 300.0  # seconds that what was written may wait for a client to take it
SPARE_FILES = 256  # of the process itself, beside connections


def bind(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    """A listening socket for each address; port 0 picks one that all share. GgrunError when an address cannot be had."""
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            sockets.append(_bound(host, port))
            port = sockets[0].getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(host: str, port: int) -> socket.socket:
    bare = host.strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # localhost is 127.0.0.1 before ::1
    except OSError as error:
        raise GgrunError(f"--host {host} is no address of this machine ({error.strerror or error})") from None
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise GgrunError(_why(error, host, port)) from None
    return sock


def _why(error: OSError, host: str, port: int) -> str:
    import errno

    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; --port takes another, and --port 0 picks one that is free"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} needs more rights than this user has; ports from 1024 do not"
    return f"{host}:{port} cannot be listened at: {error.strerror or error}"


def serve(app: Starlette, sockets: list[socket.socket], settings: Settings, start: Callable[[], Awaitable[None]]) -> None:
    """Run until SIGTERM or SIGINT. start: awaited beside the server once it listens; what it raises ends the server and is raised here."""
    _allow_files(settings.max_connections + SPARE_FILES)
    for sock in sockets:
        _drop_the_silent(sock, min(settings.timeout or STALLED, STALLED))
    Server(app, settings, start).run_until_done(sockets)


def _drop_the_silent(sock: socket.socket, seconds: float) -> None:
    """Let the system drop the connections accepted here whose client is gone without a word, or reads nothing for so long."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", round(1000 * seconds))):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _allow_files(wanted: int) -> None:
    """Raise this process's own limit on open files, as far as it may be, so that connections do not end at 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Server(uvicorn.Server):
    """uvicorn's server, with an end of its own: answers are cut in time to say so, and the exit code is ours."""

    def __init__(self, app: Starlette, settings: Settings, start: Callable[[], Awaitable[None]]) -> None:
        from ggrun.server.connection import protocol

        config = uvicorn.Config(
            app,
            http=protocol(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            backlog=BACKLOG,
            ssl_keyfile=str(settings.ssl[0]) if settings.ssl else None,
            ssl_certfile=str(settings.ssl[1]) if settings.ssl else None,
        )
        super().__init__(config)
        self._app, self._settings, self._start = app, settings, start
        self._failure: BaseException | None = None
        self._starting: asyncio.Future[None] | None = None

    def run_until_done(self, sockets: list[socket.socket]) -> None:
        self.run(sockets)
        if self._failure:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._starting = asyncio.ensure_future(self._first())

    async def _first(self) -> None:
        try:
            await self._start()
        except Exception as error:
            self._failure, self.should_exit = error, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds, lifetime = self._settings.shutdown_timeout, self._app.state.lifetime
        lifetime.stopping.set()
        if self._starting:  # nothing is said of a start over sockets that are being closed; who asked already still waits for the model
            self._starting.cancel()
            with suppress(asyncio.CancelledError):
                await self._starting
        if self.server_state.tasks:
            print(f"stopping; answers under way have {seconds:g} seconds, and Ctrl-C ends them at once", file=sys.stderr, flush=True)
        loop = asyncio.get_running_loop()
        cut = loop.call_later(max(0.0, seconds - MARGIN), lifetime.cut.set)
        self.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # wait_for takes fractions
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal ends the server in good order, the second at once. Unlike uvicorn's, it is not raised again afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            os._exit(KILLED)
        self.should_exit = True
