"""The web page: its files, as they lie in the package, and nothing else.

It knows files and headers. What the page asks for (answers, slots, the plan) it asks of the same routes as any other program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# what the page may do: load from this server alone, run no script that stands in a document, be in nobody's frame; and HTML made of text
# goes through the sanitizer, or the browser refuses it
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # the browser keeps a file and asks whether it has changed: an update is seen at once
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


@cache
def _known() -> dict[str, Traversable]:
    """Every file of the page by its path, such as vendor/marked.js. Other paths do not exist, whatever they look like."""
    found: dict[str, Traversable] = {}
    folders = [("", files("ggrun.server") / "page")]
    while folders:
        prefix, folder = folders.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                folders.append((f"{prefix}{entry.name}/", entry))
            elif any(entry.name.endswith(suffix) for suffix in _TYPES):
                found[prefix + entry.name] = entry
    return found


def _file(path: str) -> _File:
    """Read each time: it takes a fraction of a millisecond, and whoever changes a file sees it at the next reload."""
    content = _known()[path].read_bytes()
    kind = next(kind for suffix, kind in _TYPES.items() if path.endswith(suffix))
    return _File(content, {**_HEADERS, "Content-Type": kind, "ETag": f'"{sha256(content).hexdigest()[:24]}"'})


async def serve(request: Request) -> Response:
    """A file of the page; / is its index. 304 when the browser has it already, 404 for what is no part of the page."""
    path = request.path_params.get("path", "index.html")
    if path not in _known():
        return Response(f"there is no {request.url.path} here; the page is at /", 404, media_type="text/plain")
    file = _file(path)
    asked = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.headers["ETag"] in asked:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)


ROUTES = [Route(path, serve, include_in_schema=False) for path in ("/", "/index.html", "/static/{path:path}")]
