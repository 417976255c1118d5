"""The ASGI application: every route module's routes, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from ggrun.server import (
    embeddings,
    errors,
    health,
    live,
    messages,
    metrics,
    models,
    native,
    native_completion,
    no_page,
    ollama,
    ollama_models,
    openai_chat,
    openai_completions,
    openapi,
    page,
    responses,
    slots,
)
from ggrun.server.errors import ApiError
from ggrun.server.guard import Faults, Keys, Origins, Prefix, Told
from ggrun.server.lifetime import Lifetime
from ggrun.server.settings import Settings
from ggrun.server.shelf import Shelf

MODULES = (  # each has ROUTES
    health,
    live,
    models,
    openai_chat,
    openai_completions,
    embeddings,
    native_completion,
    responses,
    native,
    slots,
    metrics,
    messages,
    ollama,
    ollama_models,
    openapi,
)


def create_app(shelf: Shelf, settings: Settings) -> Starlette:
    """The application over a shelf of models. Handlers find `request.app.state.shelf`, `.settings` and `.lifetime`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        app.state.lifetime.cut.set()
        await shelf.close()

    prefixed = [Middleware(Prefix, settings=settings)] if settings.api_prefix else []
    counted = [Middleware(metrics.Counted, metrics=shelf.metrics)] if shelf.metrics else []
    app = Starlette(
        routes=[route for module in (*MODULES, page if settings.webui else no_page) for route in module.ROUTES],
        middleware=[*prefixed, *counted, *(Middleware(kind, settings=settings) for kind in (Told, Origins, Keys, Faults))],
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.shelf, app.state.settings, app.state.lifetime = shelf, settings, Lifetime()
    app.state.props = {}  # of models by name, as they were told last
    return app


def _refused(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, an unknown path or a wrong method, in the API's shape."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    sentences = {
        404: f"there is nothing at {path:.200}",
        405: f"{path:.200} does not take {method}; it takes {(error.headers or {}).get('Allow', 'other methods')}",
    }
    told = ApiError(error.status_code, sentences.get(error.status_code, str(error.detail)), headers=error.headers)
    return errors.response(told, path)
