"""/ where there is no page: programs ask for its head to see whether a server is there (Ollama's do)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.errors import ApiError


async def root(request: Request) -> Response:
    """200 for HEAD; whoever wants to read something is told that there is nothing."""
    if request.method == "HEAD":
        return Response()
    raise ApiError(404, "there is no page here: the server was started with --no-webui")


ROUTES = [Route("/", root, include_in_schema=False)]
