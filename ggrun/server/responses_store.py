"""Responses that were given, for `previous_response_id`: in memory, as many as fit, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from ggrun.server.responses_items import Item

MAX_RESPONSES: Final = 500
MAX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """body: the response as JSON. messages: the conversation up to and with its answer, without instructions. items: its output.

    inputs: all items it was made of, those of responses before it among them.
    """

    body: bytes
    messages: tuple[dict[str, Any], ...]
    n_bytes: int
    items: tuple[Item, ...] = ()
    inputs: tuple[Item, ...] = ()


class ResponseStore:
    """At most so many responses and bytes. For one thread (the event loop's)."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._n_bytes = 0

    def put(self, id: str, stored: Stored) -> None:
        """Keep one, at the cost of older ones; one that alone is too large is not kept."""
        self._stored[id] = stored
        self._items |= {item.id: item for item in stored.items if item.id is not None}
        self._n_bytes += stored.n_bytes
        while len(self._stored) > self._max_responses or self._n_bytes > self._max_bytes:
            self.remove(next(iter(self._stored)))

    def get(self, id: str) -> Stored | None:
        """The response of that id, now the most recently used; None if it is not kept."""
        if id in self._stored:
            self._stored.move_to_end(id)
        return self._stored.get(id)

    def item(self, id: str) -> Item | None:
        """An output item of a response that is kept."""
        return self._items.get(id)

    def remove(self, id: str) -> bool:
        """Forget one; whether it was there."""
        stored = self._stored.pop(id, None)
        if stored is not None:
            self._n_bytes -= stored.n_bytes
            for item in stored.items:
                self._items.pop(item.id or "", None)
        return stored is not None

    def __len__(self) -> int:
        return len(self._stored)
