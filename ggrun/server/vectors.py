"""Texts and token ids in, vectors out: what every API's embeddings have in common.

Knows tokenizers, the engine's `embed` and norms; must not know any API's shapes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ggrun.server.errors import ApiError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggrun.engine.engine import Engine
    from ggrun.server.settings import Settings
    from ggrun.server.shelf import OpenModel

Input = str | Sequence[int]

POOLINGS: Final = ("mean", "last", "cls")
AT_ONCE: Final = 4  # inputs that are computed together, of one request and of all
# threads of their own: those of the event loop read other requests' prompts meanwhile
_threads: Final = ThreadPoolExecutor(AT_ONCE, "ggrun-embed")


@dataclass(frozen=True, slots=True)
class Vectors:
    """rows: float32 [n_embd], one for each input, not normalized. n_tokens: of all inputs."""

    rows: list[NDArray[np.float32]]
    n_tokens: int


async def embed(model: OpenModel, settings: Settings, inputs: Sequence[Input], param: str, truncate: bool = False) -> Vectors:
    """A vector for each input. param: the request's field, for errors. truncate: cut what is too long at its end.

    Raises ApiError 400 for an input that is empty, too long or no token of the model's. Cancelling it stops the computation.
    """
    pooling = pooling_of(settings)
    prompts = await asyncio.to_thread(_prompts, model.engine, inputs, param, truncate)
    cancelled = threading.Event()
    room = asyncio.Semaphore(AT_ONCE)
    work = partial(model.engine.embed, pooling=pooling, cancelled=cancelled.is_set)

    async def one(ids: list[int]) -> NDArray[np.float32]:
        async with room:
            return await asyncio.get_running_loop().run_in_executor(_threads, work, ids)

    try:
        async with asyncio.TaskGroup() as group:
            rows = [group.create_task(one(ids)) for ids in prompts]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    finally:
        cancelled.set()
    return Vectors([row.result() for row in rows], sum(map(len, prompts)))


def pooling_of(settings: Settings) -> str | None:
    """How vectors of tokens become one: as --pooling says; None: as the model does. ApiError 501 for what gives no vector."""
    if settings.pooling in (None, *POOLINGS):
        return settings.pooling
    raise ApiError(501, f"the server was started with --pooling {settings.pooling}, which gives no vector for a text")


def normalized(row: NDArray[np.float32], norm: int = 2) -> NDArray[np.float32]:
    """A row scaled as llama.cpp's embd_normalize says: 2 Euclidean, 1 taxicab, above 2 that p-norm, 0 to the range of int16, -1 not."""
    import numpy as np

    if norm < 0:
        return row
    wide = np.abs(row.astype(np.float64))
    peak = float(wide.max(initial=0.0))
    if peak == 0:
        return row
    size = peak / 32760 if norm == 0 else peak * float(((wide / peak) ** norm).sum()) ** (1 / norm)  # by its peak: no power overflows
    return (row / size).astype(np.float32)


def _prompts(engine: Engine, inputs: Sequence[Input], param: str, truncate: bool) -> list[list[int]]:
    many = len(inputs) > 1
    return [_ids(engine, given, f"{param}[{i}]" if many else param, truncate) for i, given in enumerate(inputs)]


def _ids(engine: Engine, given: Input, path: str, truncate: bool) -> list[int]:
    ids = engine.tokenizer.encode(given, parse_special=True) if isinstance(given, str) else list(given)
    if not given or not ids:
        raise ApiError(400, "the input is empty: there is nothing to embed", param=path)
    if (bad := next((id_ for id_ in ids if not 0 <= id_ < engine.spec.n_vocab), None)) is not None:
        raise ApiError(400, f"token id {bad} is outside the model's vocabulary of {engine.spec.n_vocab}", param=path)
    if len(ids) > engine.n_ctx:
        if truncate:
            return ids[: engine.n_ctx]
        raise ApiError(
            400,
            f"the input has {len(ids)} tokens and the context holds {engine.n_ctx}; shorten it, or start the server with a larger -c",
            type="exceed_context_size_error",
            code="context_length_exceeded",
            param=path,
            extra={"n_prompt_tokens": len(ids), "n_ctx": engine.n_ctx},
        )
    return ids


def inputs_of(given: Any, param: str) -> list[Input]:
    """The inputs a field names: a text, token ids, or a list of texts and of lists of ids. ApiError 400 for anything else."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise ApiError(400, "a text, token ids, or a list of texts or of lists of ids is needed", param=param)
    if all(_is_id(entry) for entry in given):
        return [given]
    for i, entry in enumerate(given):
        if not isinstance(entry, str) and not (isinstance(entry, list) and all(map(_is_id, entry))):
            raise ApiError(400, "a text or a list of token ids is needed", param=f"{param}[{i}]")
    return list(given)


def _is_id(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)
