"""/health: whether the server is ready to answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.errors import ApiError
from ggrun.server.operation import operation
from ggrun.server.shelf import Shelf
from ggrun.server.streaming import json_response


@operation("Whether the server is ready", answer="the default model is loaded")
@operation("Whether the server is ready")
async def health(request: Request) -> Response:
    """200 once the default model is loaded (or asleep, which the next request ends), 503 before."""
    shelf: Shelf = request.app.state.shelf
    first = shelf.models()[0]
    if request.app.state.lifetime.stopping.is_set():
        raise ApiError(503, "the server is shutting down")
    if first.state == "loading":
        raise ApiError(503, "Loading model")  # llama-server's words, which scripts look for
    if first.state == "failed":
        raise ApiError(503, f"{first.name} cannot be opened: {first.error}")
    return json_response({"status": "ok"})


ROUTES = [Route("/health", health), Route("/v1/health", health)]
