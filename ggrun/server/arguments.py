"""The arguments of a tool call as an object, for APIs that do not pass their JSON text on."""

from __future__ import annotations

from typing import Any

import msgspec


def read_arguments(text: str) -> dict[str, Any]:
    """The object. What is none, because the answer was cut, comes as it is under a name that says so."""
    try:
        value = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
