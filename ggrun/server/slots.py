"""llama.cpp's /slots: what each slot does, and its keys and values saved to a file, restored, erased."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server import body
from ggrun.server.errors import ApiError
from ggrun.server.operation import operation
from ggrun.server.settings import Settings
from ggrun.server.shelf import OpenModel, Shelf
from ggrun.server.streaming import json_response

NAME = re.compile(r"[\w.+-][\w .+-]{0,199}")  # of a saved slot: no folders, no hidden tricks


class File(msgspec.Struct):
    """What saving and restoring take."""

    filename: str = ""
    model: str | None = None


@operation("What each slot does", query={"model": "of which model", "fail_on_no_slot": "503 when no slot is idle"})
async def slots(request: Request) -> Response:
    """Every slot's state. `?fail_on_no_slot=1`: 503 when none is idle. A model that is not loaded has no slots, and is not loaded here."""
    settings: Settings = request.app.state.settings
    if not settings.slots:
        raise ApiError(501, "this server does not show its slots; it was started with --no-slots")
    rows = _rows(request.app.state.shelf, request.query_params.get("model"))
    wanted = request.query_params.get("fail_on_no_slot", "")
    if wanted not in ("", "0", "false") and all(row["is_processing"] for row in rows):
        raise ApiError(503, "no slot available")
    return json_response(rows)


@operation("Save, restore or erase a slot", request=File, query={"action": "save, restore or erase", "model": "of which model"})
async def act(request: Request) -> Response:
    """`?action=save`, `restore` or `erase` of one slot; needs --slot-save-path."""
    settings: Settings = request.app.state.settings
    if settings.slot_save_path is None:
        raise ApiError(501, "slots are not saved by this server; start it with --slot-save-path FOLDER")
    action = request.query_params.get("action", "")
    if action not in ACTIONS:
        raise ApiError(400, f"action is {action!r:.40}; there are {', '.join(ACTIONS)}", param="action")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    asked = await body.read(request, File) if action != "erase" or has_body else File()
    text = request.path_params["slot"]
    shelf: Shelf = request.app.state.shelf
    async with shelf.use(asked.model or request.query_params.get("model")) as model:
        n_slots = model.engine.plan.shape.n_seqs
        if not text.isdecimal() or int(text[:9]) >= n_slots:
            raise ApiError(400, f"there is no slot {text:.40}; slots go from 0 to {n_slots - 1}", param="id_slot")
        slot = int(text)
        path = settings.slot_save_path if action == "erase" else _inside(settings.slot_save_path, asked.filename)
        return json_response({"id_slot": slot} | await asyncio.to_thread(ACTIONS[action], model, slot, path))


def _save(model: OpenModel, slot: int, path: Path) -> dict[str, Any]:
    start = perf_counter()
    n, n_bytes = model.engine.save_slot(slot, path)
    return {"filename": path.name, "n_saved": n, "n_written": n_bytes, "timings": {"save_ms": _ms(start)}}


def _restore(model: OpenModel, slot: int, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ApiError(404, f"there is no saved slot {path.name}", param="filename")
    start = perf_counter()
    n, n_bytes = model.engine.restore_slot(slot, path)
    return {"filename": path.name, "n_restored": n, "n_read": n_bytes, "timings": {"restore_ms": _ms(start)}}


def _erase(model: OpenModel, slot: int, path: Path) -> dict[str, Any]:
    return {"n_erased": model.engine.erase_slot(slot)}


ACTIONS: dict[str, Callable[[OpenModel, int, Path], dict[str, Any]]] = {"save": _save, "restore": _restore, "erase": _erase}


def _inside(folder: Path, name: str) -> Path:
    """A file of that name in the folder itself, or ApiError 400."""
    if not NAME.fullmatch(name) or name in (".", "..") or (folder / name).is_symlink():
        raise ApiError(400, f"filename {name!r:.80} is no plain file name (letters, digits, spaces and . _ + -)", param="filename")
    return folder / name


def _ms(start: float) -> float:
    return round(1e3 * (perf_counter() - start), 3)


def _rows(shelf: Shelf, name: str | None) -> list[dict[str, Any]]:
    """One row a slot, of the model of that name, or of every model that is loaded."""
    states = [state for state in shelf.models() if name is None or name in (state.name, *state.aliases)]
    return [_row(state.model, slot) for state in states if state.model for slot in state.model.engine.status().slots]


def _row(model: OpenModel, slot: Any) -> dict[str, Any]:
    """llama.cpp's members, and then ours."""
    return {
        "id": slot.id,
        "id_task": -1,
        "n_ctx": slot.n_ctx,
        "speculative": False,
        "is_processing": slot.state != "idle",
        "next_token": [{"has_next_token": slot.state == "answer", "n_remain": -1, "n_decoded": slot.n_predicted}],
        "model": model.name,
        "state": slot.state,
        "n_tokens": slot.n_tokens,
        "n_prompt": slot.n_prompt,
        "n_prompt_done": slot.n_prompt_done,
        "n_predicted": slot.n_predicted,
    }


ROUTES = [Route("/slots", slots), Route("/slots/{slot}", act, methods=["POST"])]
