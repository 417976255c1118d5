"""What the server is doing at this moment, for a person who looks on: GET /status, and GET /plan, where everything of a model runs.

Neither loads a model nor wakes one that sleeps, nor waits for the engine.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.plan.report import report
from ggrun.server.errors import ApiError
from ggrun.server.operation import operation
from ggrun.server.settings import Settings
from ggrun.server.shelf import ModelState, Shelf
from ggrun.server.streaming import json_response


@operation("What every model is doing: slots, KV cache, totals", answer="figures of one moment, for each model")
async def status(request: Request) -> Response:
    """Of each model its state and, while it is loaded, `engine`: an EngineStatus; without `slots` where --no-slots was said."""
    shelf: Shelf = request.app.state.shelf
    settings: Settings = request.app.state.settings
    return json_response({"models": [_status(state, settings) for state in shelf.models()]})


def _status(state: ModelState, settings: Settings) -> dict[str, Any]:
    told: dict[str, Any] = {"name": state.name, "state": state.state, "error": state.error, "loaded": None, "n_ctx": None, "engine": None}
    if state.model:
        figures = asdict(state.model.engine.status())
        if not settings.slots:
            del figures["slots"]
        told |= {"loaded": state.created, "n_ctx": state.model.engine.n_ctx, "engine": figures}
    return told


@operation(
    "Every byte of a loaded model, and where its layers run",
    answer="what `ggrun plan --json` prints",
    query={"model": "its name or alias; without one, the default model"},
)
async def plan(request: Request) -> Response:
    """404 for a model that is not there, 409 for one that is not loaded: what has not been loaded has no plan."""
    shelf: Shelf = request.app.state.shelf
    name = request.query_params.get("model")
    found = next((state for state in shelf.models() if name is None or name == state.name or name in state.aliases), None)
    if found is None:
        raise ApiError(404, f"there is no model {name!r:.80} here", code="model_not_found", param="model")
    if found.model is None:
        raise ApiError(409, f"{found.name} is not loaded, and has no plan before it is; a request to it loads it", code="model_not_loaded")
    return json_response(report(found.model.engine.plan, found.name))


ROUTES = [Route("/status", status), Route("/plan", plan)]
