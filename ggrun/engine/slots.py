"""What a slot holds, in a file: its tokens and their keys and values, to be reused after a restart or on another machine.

Restored blocks are cached ones: the next prompt that begins with those tokens finds them, in whichever slot. Runs on callers' threads and
does on the engine's thread only what must be done there, in portions between its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.kv import Block, BlockPool
from ggrun.engine.kv_file import Origin, Reader, Writer, n_blocks, sweep
from ggrun.engine.prefixes import Prefixes
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.kv_form import KvForm

T = TypeVar("T")
STALE_SECONDS = 3600  # a file half written that nobody has touched since
PORTION_BYTES = 16 << 20  # read from the executor, or written to it, between two steps


class Call(Protocol):
    """Runs something on the engine's thread and returns its result."""

    def __call__(self, work: Callable[[], T]) -> T: ...


class Slots:
    """`held` gives the computed tokens of who is in a slot, or was last, and whether someone is in it; `hold` sets them."""

    def __init__(
        self,
        call: Call,
        prefixes: Prefixes,
        pool: BlockPool,
        form: KvForm,
        origin: Origin,
        n_slots: int,
        n_ctx: int,
        held: Callable[[int], tuple[list[int], bool]],
        hold: Callable[[int, list[int]], None],
    ) -> None:
        self._call, self._prefixes, self._pool, self._form, self._origin = call, prefixes, pool, form, origin
        self._n_slots, self._n_ctx = n_slots, n_ctx
        self._held, self._hold = held, hold
        self._portion = max(1, PORTION_BYTES // origin.block_bytes)

    def save(self, slot: int, path: Path) -> tuple[int, int]:
        """Write what the slot holds, as far as it is still in the cache; returns tokens and bytes. GgrunError."""
        tokens, blocks = self._call(lambda: self._found(slot))
        try:
            sweep(path, STALE_SECONDS)
            with Writer(path, self._origin, tokens) as file:
                buffers = [np.empty(self._origin.block_bytes, np.uint8) for _ in range(min(self._portion, len(blocks)))]
                for start in range(0, len(blocks), self._portion):
                    some = blocks[start : start + self._portion]
                    self._call(partial(self._read, some, buffers))
                    for index, data in enumerate(buffers[: len(some)], start):
                        if (n_tokens := len(tokens) - index * KV_BLOCK_TOKENS) < KV_BLOCK_TOKENS:
                            self._form.clear(data, n_tokens)
                        file.write(data)
        except OSError as error:
            raise GgrunError(f"slot {slot} cannot be saved to {path}: {error.strerror}") from error
        finally:
            self._call(lambda: self._release(blocks))
        return len(tokens), file.n_bytes

    def restore(self, slot: int, path: Path) -> tuple[int, int]:
        """Bring what was saved back to the cache; returns its tokens (as many as there is room for) and the file's bytes. GgrunError."""
        self._call(lambda: self._idle(slot, "restored"))
        blocks: list[Block] = []
        try:
            with Reader(path, self._origin) as file:
                tokens = file.tokens
                if len(tokens) > self._n_ctx:
                    raise GgrunError(f"{path} holds {len(tokens)} tokens and the context {self._n_ctx}: open the model with a larger -c")
                buffers = [np.empty(self._origin.block_bytes, np.uint8) for _ in range(min(self._portion, n_blocks(len(tokens))))]
                for start in range(0, n_blocks(len(tokens)), self._portion):
                    some = buffers[: n_blocks(len(tokens)) - start]
                    for data in some:
                        file.read(data)
                    if not self._call(partial(self._adopt, tokens, some, blocks)):
                        break
        except OSError as error:
            raise GgrunError(f"slot {slot} cannot be restored from {path}: {error.strerror}") from error
        finally:
            self._call(lambda: self._release(blocks))
        n_tokens = min(len(tokens), len(blocks) * KV_BLOCK_TOKENS)
        self._call(lambda: self._hold(slot, tokens[:n_tokens]))
        return n_tokens, file.n_bytes

    def erase(self, slot: int) -> int:
        """Forget what the slot holds but for what others build on; returns how many tokens."""

        def work() -> int:
            self._idle(slot, "erased")
            tokens, _ = self._held(slot)
            self._hold(slot, [])
            return self._prefixes.forget(tokens)

        return self._call(work)

    # ---- on the engine's thread

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self._n_slots:
            raise GgrunError(f"there is no slot {slot}; they are counted from 0 to {self._n_slots - 1}")

    def _idle(self, slot: int, what: str) -> None:
        self._check(slot)
        if self._held(slot)[1]:
            raise GgrunError(f"slot {slot} is at work and cannot be {what} now; wait until its answer has ended")

    def _found(self, slot: int) -> tuple[list[int], list[Block]]:
        """The slot's tokens that are in the cache, and their blocks, references taken."""
        self._check(slot)
        tokens, _ = self._held(slot)
        blocks, n_tokens = self._prefixes.take([*tokens, -1], counts=False)
        return tokens[:n_tokens], blocks

    def _read(self, blocks: list[Block], buffers: list[NDArray[np.uint8]]) -> None:
        for block, data in zip(blocks, buffers):
            self._prefixes.read(block, data)

    def _adopt(self, tokens: list[int], some: list[NDArray[np.uint8]], into: list[Block]) -> bool:
        for data in some:
            index = len(into)
            block = self._prefixes.adopt(tokens, index, data, min(KV_BLOCK_TOKENS, len(tokens) - index * KV_BLOCK_TOKENS))
            if block is None:
                return False
            into.append(block)
        return True

    def _release(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            self._pool.release(block)
