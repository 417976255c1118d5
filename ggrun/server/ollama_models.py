"""What Ollama's API tells of models: /api/tags, /api/show, /api/ps, /api/version; and what it would do to them, which is refused.

A model's facts are read from its file's header, once per file and change of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun import __version__
from ggrun.errors import GgrunError
from ggrun.server.body import read
from ggrun.server.errors import ApiError
from ggrun.server.ollama import model_name
from ggrun.server.ollama_answers import stamp
from ggrun.server.operation import operation
from ggrun.server.streaming import json_response

if TYPE_CHECKING:
    from ggrun.gguf import GgufFile
    from ggrun.server.shelf import ModelState, OpenModel, Shelf

VERSION: Final = "0.12.6"  # of Ollama, whose API this is: clients compare it
FOREVER: Final = 100 * 365 * 86400


class ShowRequest(msgspec.Struct):
    """The body of POST /api/show; verbose: the header's arrays, too."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: Any = None
    template: Any = None
    options: Any = None


@dataclass(frozen=True, slots=True)
class Card:
    """What a file's header says. metadata: scalars, and None for arrays."""

    architecture: str
    n_bytes: int
    n_parameters: int
    file_type: str
    template: str
    license: str
    n_ctx: int
    embeds: bool
    metadata: Mapping[str, Any]

    @property
    def details(self) -> dict[str, Any]:
        """As /api/tags has them."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": _short(self.n_parameters),
            "quantization_level": self.file_type,
        }


@operation("The models there are, as Ollama lists them")
async def tags(request: Request) -> Response:
    """GET /api/tags."""
    return json_response({"models": [await _entry(state) for state in _shelf(request).models()]})


@operation("The models that are loaded, as Ollama lists them")
async def ps(request: Request) -> Response:
    """GET /api/ps."""
    idle = request.app.state.settings.sleep_idle
    until = stamp(time.time() + (idle if idle > 0 else FOREVER))
    models = []
    for state in _shelf(request).models():
        if state.model is not None:
            memory = _memory(state.model)
            n_ctx = state.model.engine.n_ctx
            models.append(await _entry(state) | memory | {"expires_at": until, "context_length": n_ctx})
    return json_response({"models": models})


@operation("What a model is", request=ShowRequest)
async def show(request: Request) -> Response:
    """POST /api/show."""
    asked = await read(request, ShowRequest)
    name = asked.model or asked.name
    if not name:
        raise ApiError(400, "model is required", param="model")
    name = model_name(request, name)
    state = next((state for state in _shelf(request).models() if name in (state.name, *state.aliases)), None)
    if state is None:
        raise ApiError(404, f"model {name!r:.80} not found")
    path = _path(state)
    card = await _card(path)
    metadata = await asyncio.to_thread(_arrays, path) if asked.verbose else card.metadata
    template = state.model.engine.chat_template.source if state.model is not None else card.template
    return json_response(
        {
            "modelfile": f"# served by ggrun\nFROM {path}\n",
            "parameters": _parameters(state),
            "template": template,
            "license": card.license,
            "details": card.details,
            "model_info": metadata,
            "capabilities": _capabilities(card, template, state.model),
            "modified_at": stamp(path.stat().st_mtime),
        }
    )


@operation("The version of Ollama's API that is spoken, and ggrun's")
async def version(request: Request) -> Response:
    """GET /api/version."""
    return json_response({"version": VERSION, "ggrun": __version__})


def refusal(why: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that says why not."""

    @operation("Not supported", answer="never: this is refused")
    async def refused(request: Request) -> Response:
        raise ApiError(400, f"{request.url.path} is not supported: {why}")

    return refused


# ---- of one model


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _path(state: ModelState) -> Path:
    from ggrun.engine.loading import embedded_model

    return state.path or embedded_model()


async def _entry(state: ModelState) -> dict[str, Any]:
    path = _path(state)
    try:
        card = await _card(path)
    except ApiError:  # it is listed all the same, so that its name is not a riddle
        return {"name": state.name, "model": state.name, "modified_at": stamp(0), "size": 0, "digest": "", "details": {}}
    changed = path.stat().st_mtime
    digest = hashlib.sha256(f"{path.name} {card.n_bytes} {changed}".encode()).hexdigest()
    names = {"name": state.name, "model": state.name}
    return {**names, "modified_at": stamp(changed), "size": card.n_bytes, "digest": digest, "details": card.details}


async def _card(path: Path) -> Card:
    """The card of a file. ApiError 500 when it cannot be read."""
    try:
        return await asyncio.to_thread(_read_card, path, path.stat().st_mtime_ns)
    except (GgrunError, OSError) as error:
        raise ApiError(500, f"{path.name} cannot be read: {error}") from None


@lru_cache(maxsize=256)
def _read_card(path: Path, changed: int) -> Card:
    from ggrun.gguf import open_gguf
    from ggrun.gguf.filetypes import FILE_TYPES

    with open_gguf(path, "mmap") as file:
        metadata = file.metadata
        architecture = _text(metadata.get("general.architecture"))
        file_type = metadata.get("general.file_type")
        n_ctx = metadata.get(f"{architecture}.context_length")
        return Card(
            architecture,
            file.n_bytes,
            sum(tensor.n_elements for tensor in file.tensors.values()),
            FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
            _text(metadata.get("tokenizer.chat_template")),
            _text(metadata.get("general.license")),
            n_ctx if isinstance(n_ctx, int) else 0,
            f"{architecture}.pooling_type" in metadata,
            _info(file, arrays=False),
        )


def _arrays(path: Path) -> dict[str, Any]:
    from ggrun.gguf import open_gguf

    with open_gguf(path, "mmap") as file:
        return _info(file, arrays=True)


def _info(file: GgufFile, arrays: bool) -> dict[str, Any]:
    info = {_text(key): _plain(value, arrays) for key, value in file.metadata.items()}
    return info | {"general.parameter_count": sum(tensor.n_elements for tensor in file.tensors.values())}


def _plain(value: Any, arrays: bool) -> Any:
    """A metadata value as JSON can have it."""
    from ggrun.gguf import MetadataArray

    if isinstance(value, MetadataArray):
        return [_plain(element, arrays) for element in value] if arrays else None
    if isinstance(value, str):
        return _text(value)
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _text(value: Any) -> str:
    """A string of the file, whose bytes may be anything; not a string: none."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _short(n: int) -> str:
    """7.6B, 494.03M, as Ollama writes numbers of parameters."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= size:
            return f"{n / size:.4g}{unit}"
    return str(n)


def _memory(model: OpenModel) -> dict[str, int]:
    ledger = model.engine.plan.ledger
    total = ledger.total() - ledger.total(purpose="cache")
    devices = {line.device for line in ledger.lines} - {"CPU"}
    return {"size": total, "size_vram": sum(ledger.total(device) for device in devices)}


def _parameters(state: ModelState) -> str:
    defaults = state.model.defaults if state.model is not None else None
    sampling = defaults.sampling if defaults else {}
    told = {name: value for name, value in sampling.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return "\n".join(f"{name:30} {value}" for name, value in told.items())


def _capabilities(card: Card, template: str, model: OpenModel | None) -> list[str]:
    """template: also of a model that was given another than its file's. model: the open one, whose vocabulary knows more."""
    keys = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
    fills = "fim_pre" in model.engine.tokenizer.special_ids if model is not None else any(key in card.metadata for key in keys)
    if card.embeds:
        return ["embedding"]
    found = ["completion"]
    if "tools" in template or "tool_call" in template:
        found.append("tools")
    if fills:
        found.append("insert")
    if "enable_thinking" in template or "<think>" in template or "reasoning_effort" in template:
        found.append("thinking")
    return found


FILES: Final = "ggrun serves the files it was started with; keep your models as GGUF files and name them in models.toml"
REFUSED: Final = (
    ("/api/pull", "POST", "ggrun downloads nothing; fetch a GGUF file and start the server with it"),
    ("/api/push", "POST", "ggrun uploads nothing"),
    ("/api/create", "POST", FILES),
    ("/api/copy", "POST", FILES + ", with aliases if you like"),
    ("/api/delete", "DELETE", FILES),
)
ROUTES: Final = [
    Route("/api/tags", tags, methods=["GET"]),
    Route("/api/ps", ps, methods=["GET"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/version", version, methods=["GET"]),
    *(Route(path, refusal(why), methods=[method]) for path, method, why in REFUSED),
    Route("/api/blobs/{digest}", refusal(FILES), methods=["POST"]),
]
