"""GET /v1/models: which models there are, what they are like, and which of them are open."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.errors import ApiError
from ggrun.server.operation import operation
from ggrun.server.streaming import json_response

if TYPE_CHECKING:
    from ggrun import Engine
    from ggrun.server.shelf import ModelState


@operation("The models there are", answer="a list of models, the default first, with what is known of each and its state")
async def models(request: Request) -> Response:
    """OpenAI's models.list, Anthropic's, and llama.cpp's GET /models: one list that all of them can read."""
    data = [_shown(state) for state in request.app.state.shelf.models()]
    return json_response({"object": "list", "data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


@operation("One model", answer="the model")
async def model(request: Request) -> Response:
    """OpenAI's models.retrieve: by name or alias. ApiError 404 for a name that no model has."""
    name = request.path_params["name"]
    states = request.app.state.shelf.models()
    for state in states:
        if name in (state.name, *state.aliases):
            return json_response(_shown(state))
    known = ", ".join(state.name for state in states)
    raise ApiError(404, f"there is no model {name!r:.80} here; there is {known}", code="model_not_found", param="model")


def _shown(state: ModelState) -> dict[str, Any]:
    return {
        "id": state.name,
        "object": "model",
        "type": "model",
        "display_name": state.name,
        "created": state.created,
        "created_at": datetime.fromtimestamp(state.created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "ggrun",
        "aliases": list(state.aliases),
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "status": {"value": state.state, **({"error": state.error} if state.error else {})},
        "meta": meta(state.model.engine) if state.model else None,
    }


def meta(engine: Engine) -> dict[str, Any]:
    """Figures of an open model, under llama.cpp's names. size: bytes of its weights."""
    spec = engine.spec
    return {
        "n_vocab": spec.n_vocab,
        "n_ctx_train": spec.n_ctx_train,
        "n_ctx": engine.n_ctx,
        "n_embd": spec.n_embd,
        "n_params": sum(tensor.n_elements for tensor in engine.file.tensors.values()),
        "size": engine.file.data_bytes,
    }


ROUTES: Final = [
    Route("/v1/models", models),
    Route("/models", models, name="models_short"),
    Route("/v1/models/{name:path}", model),
    Route("/models/{name:path}", model, name="model_short"),
]
