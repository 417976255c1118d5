"""What gpt-oss writes: messages with a header that names a channel, and for tool calls a recipient.

`<|channel|>analysis<|message|>...<|end|>` is a thought, `commentary` without a recipient and `final` are text, and
`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>` is a call. What stands before the first header mark was
in the prompt, or is text. Knows this format only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ggrun.text.source import Emit, IllFormed, Markers, Source, Steps

_HEADER_MARKS: Final = ("<|start|>", "<|channel|>")
_MESSAGE: Final = "<|message|>"
_BODY_ENDS: Final = Markers(("<|end|>", "<|return|>", "<|call|>", *_HEADER_MARKS))
_CHANNEL: Final = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT: Final = re.compile(r"\bto=([^\s<|]+)")
_MAX_HEADER: Final = 512

ReadCall = Callable[[Source, str, str], Steps[None]]


def read_channels(source: Source, thought: Emit | None, text: Emit, call: ReadCall | None) -> Steps[None]:
    """Everything an output has. thought None: thoughts are text, with their marks.

    call: reads the call of the named function, whose arguments come next; it also gets the header as written. None: calls are text.
    """
    header = ""
    while source.rest or not source.ended:
        if not header and not (yield from _at_header(source)):
            found = yield from _BODY_ENDS.next(source, text)
            if found not in _HEADER_MARKS:
                continue
            header = found
        try:
            header += yield from _header(source)
        except IllFormed:
            header += source.recorded()
            if not (source.ended and header.startswith(_HEADER_MARKS)):  # else the output was cut within it
                text(header)
            header = ""
            continue
        channel = _CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        if recipient and call:
            yield from call(source, recipient[1].removeprefix("functions."), header)
            yield from source.skip_space()
            found = yield from _BODY_ENDS.next(source, text, trim=True, cut=True)
        elif channel and channel[1] == "analysis" and thought:
            found = yield from _BODY_ENDS.next(source, thought)
        else:
            as_written = bool(recipient) or (channel and channel[1] == "analysis")
            text(header if as_written else "")
            found = yield from _BODY_ENDS.next(source, text)
            text(found if as_written and found not in _HEADER_MARKS else "")
        header = found if found in _HEADER_MARKS else ""


def _at_header(source: Source) -> Steps[bool]:
    """Whether a header comes next: its marks, or a recipient at the very beginning (the prompt has what stands before it)."""
    for beginning in (*_HEADER_MARKS, " to=", "to="):
        if (yield from source.follows(beginning)):
            return True
    return False


def _header(source: Source) -> Steps[str]:
    """A header's text, through its end, which is read."""
    source.record()
    parts: list[str] = []
    marks = Markers((_MESSAGE, "<|end|>", "<|return|>", "<|call|>"))
    length = 0

    def keep(text: str) -> None:
        nonlocal length
        parts.append(text)
        length += len(text)
        if length > _MAX_HEADER:
            raise IllFormed

    found = yield from marks.next(source, keep)
    if found != _MESSAGE:
        raise IllFormed
    return source.recorded()
