"""Which format a model's tool calls have, found by letting its template show some.

Renders a conversation with marked calls; looks for a known row that spells just that, else makes a row of what stands around the marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ggrun.text.error import TextError
from ggrun.text.reasoning import reasoning_of
from ggrun.text.tool_calls.formats import BY_NAME, FORMATS, GENERIC, HARMONY, CallFormat

if TYPE_CHECKING:
    from ggrun.text.template import ChatTemplate

_NAMES: Final = ("markedname", "markedother")
_ARGUMENTS: Final = ({"markedkey": "marked value", "markedlast": "marked end"}, {"markedkey": "other value", "markedlast": "other end"})
_IDS: Final = ("markedid0", "markedid1")  # nine letters and digits, as Mistral's templates want them
_MAX_SHOWN: Final = 10_000  # characters two short calls may take
_DESCRIPTION: Final = "Words that only the description of a tool has."
_TAG: Final = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_ASKED: Final = {"role": "user", "content": "words of a user"}


def formats_for(template: ChatTemplate) -> tuple[CallFormat, ...]:
    """Formats to read, the one to ask for and to force calls in first."""
    shown, generic_prompt = shown_calls(template)
    if reasoning_of(template).channels:
        own: CallFormat | None = HARMONY
    else:
        own = _known(shown) or derived_row(shown) or _by_signature(template.sources)
    rows = [GENERIC] if generic_prompt or own is None else []
    rows += [own] if own else []
    return tuple(dict.fromkeys([*rows, *(BY_NAME[name] for row in rows for name in row.also)]))


def format_for(template: ChatTemplate) -> CallFormat:
    """The format a model is asked to write calls in."""
    return formats_for(template)[0]


def shown_calls(template: ChatTemplate) -> tuple[list[str], bool]:
    """What the template makes of an assistant's two calls, and of one, with what surrounds it; whether tools are told in ggrun's words."""
    tools = [_tool(name) for name in _NAMES]
    generic = False
    with suppress(TextError):
        generic = template.render([_ASKED], tools).tools_as_text
    opening, closing = _turn(template)
    ends_thought = reasoning_of(template).end
    texts = []
    for n in (2, 1):
        calls = [{"id": _IDS[i], "type": "function", "function": {"name": _NAMES[i], "arguments": _ARGUMENTS[i]}} for i in range(n)]
        with suppress(TextError):
            said = {"role": "assistant", "content": None, "tool_calls": calls}
            rendered = template.render([_ASKED, said], add_generation_prompt=False)
            if not rendered.calls_as_text and not rendered.tools_as_text:
                text = rendered.text.rpartition(_ASKED["content"])[2]
                text = text[len(_common_start(opening, text)) :]
                text = text.rpartition(ends_thought)[2].lstrip() if ends_thought in text.partition(_NAMES[0])[0] else text
                if len(text) <= _MAX_SHOWN:
                    texts.append(text[: len(text) - len(_common_end(closing, text))])
    return texts, generic


def _turn(template: ChatTemplate) -> tuple[str, str]:
    """What stands before and after an answer."""
    opening = closing = ""
    with suppress(TextError):
        opening = template.render([_ASKED]).text.rpartition(_ASKED["content"])[2]
    with suppress(TextError):
        said = {"role": "assistant", "content": _DESCRIPTION}
        closing = template.render([_ASKED, said], add_generation_prompt=False).text.rpartition(_DESCRIPTION)[2]
    return opening, closing


def _tool(name: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": "words"} for key in _ARGUMENTS[0]}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": _DESCRIPTION, "parameters": parameters}}


def _known(texts: Sequence[str]) -> CallFormat | None:
    """The row that spells exactly what the template does."""
    for text in texts:
        n = 1 + (_NAMES[1] in text)
        for row in FORMATS:
            calls = row.between.join(row.spell(_NAMES[i], _ARGUMENTS[i], _IDS[i]) for i in range(n))
            at = text.find(row.first + calls + row.last)
            if at >= 0 and (row.shape.trigger or not text[:at].strip()):  # what has no marks of its own must begin the answer
                return row
    return None


def _by_signature(sources: Sequence[str]) -> CallFormat | None:
    for row in FORMATS:
        if row.signature and all(any(text in source for source in sources) for text in row.signature):
            return row
    return None


def derived_row(texts: Sequence[str]) -> CallFormat | None:
    """A row made of what stands around the marks, if it reads them back."""
    for text in texts:
        row = _row(text)
        if row and list(_read_back(row, text)) == [
            (_NAMES[i], dict(_ARGUMENTS[i])) for i in range(1 + (_NAMES[1] in text))
        ]:
            return row
    return None


def _row(text: str) -> CallFormat | None:
    for mark in _IDS:
        text = text.replace(mark, "«id»")
    first = _call_at(text, 0)
    if first is None:
        return None
    start, header, argument, end = first
    second = _call_at(text, 1, end)
    lead = text[:start]
    if second is None:
        begin, after, opener, between, last = lead, text[end:], "", "\n", ""
    else:
        joint, rest = text[end : second[0]], text[second[3] :]
        begin = _common_end(lead, joint)
        joint = joint[: len(joint) - len(begin)]
        after = _common_start(joint, rest)
        opener, between, last = lead[: len(lead) - len(begin)], joint[len(after) :], rest[len(after) :]
    try:
        row = CallFormat("derived", begin + header + after, opener, last, between, argument)
        _ = row.shape
    except (ValueError, IndexError):  # what stands there has no form that rows know
        return None
    return row


def _call_at(text: str, index: int, at: int = 0) -> tuple[int, str, str, int] | None:
    """Of a marked call: where its name stands, the text from there on as a row has it, the form of an argument, and where it ends."""
    start = text.find(_NAMES[index], at)
    if start < 0:
        return None
    name_end = start + len(_NAMES[index])
    arguments = dict(_ARGUMENTS[index])
    for brace in re.finditer(r"\{", text[name_end:]):
        with suppress(ValueError, RecursionError):
            found, end = json.JSONDecoder().raw_decode(text, name_end + brace.start())
            if found == arguments:
                middle = text[name_end : name_end + brace.start()]
                return start, f"«name»{middle}«arguments»", "", end
    (key, value), (last_key, last_value) = arguments.items()
    places = [text.find(word, name_end) for word in (key, value, last_key, last_value)]
    if -1 in places or places != sorted(places):
        return None
    ends = [place + len(word) for place, word in zip(places, (key, value, last_key, last_value), strict=True)]
    lead, joint = text[name_end : places[0]], text[ends[1] : places[2]]
    before = _common_end(lead, joint)
    after = _common_start(joint[: len(joint) - len(before)], text[ends[3] :])
    argument = f"{before}«key»{text[ends[0] : places[1]]}«value»{after}"
    return start, f"«name»{lead[: len(lead) - len(before)]}«arguments»", argument, ends[3] + len(after)


def _read_back(row: CallFormat, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The calls that the row finds in a text."""
    from ggrun.text.deltas import CallDelta, Delta
    from ggrun.text.source import Markers, Source
    from ggrun.text.tool_calls.reading import CallReader

    deltas: list[Delta] = []
    reader = CallReader((row,), [_tool(name) for name in _NAMES], deltas.append, whole=True)
    source = Source()
    source.feed(text)
    source.ended = True
    while _ended(reader.read_bare(source)):
        pass
    markers = Markers(reader.markers)
    while marker := _ended(markers.next(source, lambda text: None)):
        _ended(reader.read(source, marker))
    for delta in deltas:
        if isinstance(delta, CallDelta) and delta.name:
            yield delta.name, json.loads(delta.arguments)


def _ended(steps: Any) -> Any:
    """The result of a coroutine all of whose text has come."""
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def _common_start(a: str, b: str) -> str:
    """What both begin with, no tag cut."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    inside = [tag for text in (a, b) for tag in _TAG.finditer(text) if tag.start() < n < tag.end()]
    return a[: min([n, *(tag.start() for tag in inside)])]


def _common_end(a: str, b: str) -> str:
    """What both end with, no tag cut."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    inside = [len(text) - tag.end() for text in (a, b) for tag in _TAG.finditer(text) if tag.start() < len(text) - n < tag.end()]
    return a[len(a) - min([n, *inside]) :]
