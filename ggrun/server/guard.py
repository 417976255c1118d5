"""Who may ask: plain ASGI middleware around the routes, because Starlette's own would stand between a stream and its client.

Each answers by itself what it refuses, in the shape of the path's API, and passes on everything else untouched.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ggrun.server import errors
from ggrun.server.errors import STOPPING, ApiError, ClientGone
from ggrun.server.settings import Settings, loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# without a key, as llama-server has them
OPEN_PATHS = frozenset(["/", "/index.html", "/favicon.ico", "/health", "/v1/health", "/models", "/v1/models"])
OPEN_FOLDERS = ("/static/",)
METHODS = b"GET, POST, DELETE, OPTIONS"


HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([\w.-]+))(?::\d*)?")  # an address in brackets or a name, and perhaps a port


class Headers:
    """The first value of each of a request's headers, as text."""

    def __init__(self, scope: Scope) -> None:
        self.size = sum(len(name) + len(value) for name, value in scope["headers"])
        self._values: dict[bytes, bytes] = dict(reversed(scope["headers"]))

    def get(self, name: bytes) -> str | None:
        value = self._values.get(name)
        return None if value is None else value.decode("latin-1").strip()


class Prefix:
    """All paths begin with --api-prefix, which nothing behind this sees."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._prefix = app, settings.api_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path: str = scope["path"]
        if path.startswith(f"{self._prefix}/"):
            return await self._app({**scope, "path": path.removeprefix(self._prefix)}, receive, send)
        if path == self._prefix:  # the page's own paths are relative to a folder
            headers = [(b"location", f"{self._prefix}/".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 307, "headers": headers})
            return await send({"type": "http.response.body", "body": b""})
        error = ApiError(404, f"there is nothing at {path:.200}; what this server has begins with {self._prefix}/")
        await errors.response(error, path)(scope, receive, send)


class Origins:
    """Pages of other sites may not ask, whatever name they found this machine under (DNS rebinding), unless --cors-origin lets them."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        names = [*settings.hosts, *settings.allowed_hosts]
        self._hosts = {name.strip("[]").lower() for name in names}
        self._any_host = settings.wide

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope)
        host, origin = headers.get(b"host"), headers.get(b"origin")
        refused = self._refused(host, origin, headers)
        if refused:
            return await errors.response(refused, scope["path"])(scope, receive, send)
        if origin is None or not self._allows(origin):
            return await self._app(scope, receive, send)
        cors = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
        cors.append((b"access-control-expose-headers", b"*"))
        asked = headers.get(b"access-control-request-method")
        if scope["method"] == "OPTIONS" and asked is not None:
            wanted = headers.get(b"access-control-request-headers") or "*"
            cors += [(b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", wanted.encode("latin-1"))]
            cors.append((b"access-control-max-age", b"600"))
            await send({"type": "http.response.start", "status": 204, "headers": cors})
            return await send({"type": "http.response.body", "body": b""})

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *cors]}
            await send(message)

        await self._app(scope, receive, send_with)

    def _refused(self, host: str | None, origin: str | None, headers: Headers) -> ApiError | None:
        if headers.size > self._settings.max_headers:
            size = f"{self._settings.max_headers >> 10} KiB"
            return ApiError(431, f"the request's headers are larger than {size}", headers={"connection": "close"})
        if host is None or not self._known(host):
            name = f"the host {host!r:.80}" if host else "a request without a Host"
            return ApiError(403, f"{name} is not what this server is called; --allow-host lets it be", code="host_not_allowed")
        if origin is None or self._allows(origin) or urlsplit(origin).netloc.lower() == host.lower():
            return None
        return ApiError(403, f"pages of {origin:.80} may not ask here; --cors-origin {origin:.80} lets them", code="origin_not_allowed")

    def _known(self, host: str) -> bool:
        name = _name(host)
        return name is not None and (self._any_host or loopback(name) or name in self._hosts)

    def _allows(self, origin: str) -> bool:
        for allowed in self._settings.cors_origins:
            if allowed in ("*", origin.lower()) or (allowed == "localhost" and loopback(_name(urlsplit(origin).netloc) or "")):
                return True
        return False


class Keys:
    """Requests need one of the API keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`; health, the list of models
    and the page's files do not."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["method"] == "OPTIONS" or _is_open(scope["path"]):
            return await self._app(scope, receive, send)
        headers = Headers(scope)
        kind, _, key = (headers.get(b"authorization") or "").partition(" ")
        given = [key.strip() if kind.lower() == "bearer" else None, headers.get(b"x-api-key")]
        if any(self._fits(word.encode("latin-1")) for word in given if word is not None):
            return await self._app(scope, receive, send)
        words = "the API key is wrong" if any(given) else "an API key is needed: Authorization: Bearer KEY"
        error = ApiError(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        await errors.response(error, scope["path"])(scope, receive, send)

    def _fits(self, word: bytes) -> bool:
        """Whether it is one of the keys; takes as long whichever it is."""
        return sum(hmac.compare_digest(word, key) for key in self._keys) > 0


class Told:
    """With --verbose, a line on stderr for each request once it is answered: who, what, status, seconds."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._wanted = app, settings.verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._wanted:
            return await self._app(scope, receive, send)
        start, status = perf_counter(), "gone"

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            client = (scope.get("client") or ("?",))[0]
            path = scope["path"].encode("unicode_escape").decode()  # no line breaks, no colours
            print(f"{client} {scope['method']} {path:.200} {status} {perf_counter() - start:.3f} s", file=sys.stderr, flush=True)


class Faults:
    """The last resort: an exception becomes an error in the API's shape, and a sentence in the log; a traceback goes nowhere."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientGone:
            pass
        except asyncio.CancelledError:  # the server gave up waiting for this answer, see `listener`
            if not started:
                await errors.response(ApiError(503, STOPPING), scope["path"])(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            told = errors.told(error)
            if told.status >= 500 and not isinstance(error, ApiError):
                errors.log(error, scope["path"])
            if not started:
                await errors.response(told, scope["path"])(scope, receive, send)


def _name(host: str) -> str | None:
    """The name or address of a Host header, without its port; None for what is none."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower().rstrip(".") if found else None


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
