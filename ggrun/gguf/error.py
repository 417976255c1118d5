"""What goes wrong with GGUF files, said to a person.

Knows how to quote text that came out of a file; must not know where in the file it stood.
"""

from __future__ import annotations

from ggrun.errors import GgrunError

_QUOTED_CHARACTERS = 80


class GgufError(GgrunError):
    """One sentence that names the file and the field that is wrong."""


def quoted(text: str | bytes) -> str:
    """`text` from a file in quotes, control characters escaped, cut to 80 characters: it may be hostile."""
    if isinstance(text, bytes):
        text = text[: 4 * _QUOTED_CHARACTERS].decode("utf-8", "replace")
    shown = text[:_QUOTED_CHARACTERS]
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")[:_QUOTED_CHARACTERS]
    return f"'{shown}{'...' if len(text) > _QUOTED_CHARACTERS else ''}'"
