"""Reads tool calls out of a model's output as it arrives.

Knows the formats' rows; must not know which of them a model uses, nor thoughts. White space between the parts of a call is free. A call
that turns out not to be one is given back as the text it was.
"""

from __future__ import annotations

import json
import re
import secrets
import string as letters
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ggrun.text.deltas import CallDelta, Delta, TextDelta
from ggrun.text.loose_json import DIALECTS, JSON, escaped, members, string, value
from ggrun.text.source import IllFormed, Markers, Source, Steps
from ggrun.text.tool_calls.formats import ArgumentShape, CallFormat, argument_shape
from ggrun.text.tool_calls.values import Kind, as_json, kind_of

_NAME_KEYS: Final = ("name", "tool_name", "function_name")
_ARGUMENT_KEYS: Final = ("arguments", "parameters", "args")
_BARE_KEYS: Final = ("type", "id")  # what else an object may have, when nothing but its keys tells that it is a call
_MAX_NAME: Final = 256
_ID_LETTERS: Final = letters.ascii_letters + letters.digits


def new_id() -> str:
    """An id for a call, unlike any other."""
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(24))


class _Call:
    """One call that is being read; whole: told only once it is complete."""

    def __init__(self, index: int, out: Callable[[Delta], None], whole: bool) -> None:
        self.index = index
        self.name = ""
        self.announced = False
        self._out = out
        self._whole = whole
        self._arguments: list[str] = []

    def open(self, name: str) -> None:
        """The name is known and arguments follow."""
        self.name = name
        if not self._whole:
            self._announce()

    def arguments(self, text: str) -> None:
        if not text:
            return
        if self.announced:
            self._out(CallDelta(self.index, arguments=text))
        else:
            self._arguments.append(text)

    def done(self) -> None:
        self._announce()
        self._out(CallDelta(self.index, state="done"))

    def broken(self) -> None:
        if self.announced:
            self._out(CallDelta(self.index, state="broken"))

    def _announce(self) -> None:
        if not self.announced:
            self.announced = True
            self._out(CallDelta(self.index, new_id(), self.name, "".join(self._arguments)))


class CallReader:
    """formats: those that may come; of two with one beginning the first is meant. tools: OpenAI function tools, for types of arguments.

    out: takes the deltas. whole: calls are told only when they are complete. n_done: calls that were.
    """

    def __init__(
        self, formats: Sequence[CallFormat], tools: Sequence[Mapping[str, Any]], out: Callable[[Delta], None], whole: bool = False
    ) -> None:
        self._rows: dict[str, CallFormat] = {}
        dropped: set[str] = set()
        for row in formats:
            shape = row.shape
            if shape.begin:
                self._rows.setdefault(shape.begin[0], row)
                dropped |= set(shape.opener)
            elif shape.opener:
                self._rows.setdefault(shape.opener[0], row)
            if row.argument and len(shape.begin) > 1:
                self._rows.setdefault(shape.begin[-1], row)  # "<function=" without the tag around it
            dropped |= {text for text in row.markers if text in row.first + row.last}
        self.markers = tuple({*self._rows, *dropped})
        self._bare = next((row for row in formats if not row.shape.trigger), None)
        self._parameters = {name: parameters for name, parameters in map(_parameters, tools) if name}
        self._out = out
        self._whole = whole
        self._n_announced = 0
        self.n_done = 0

    def read(self, source: Source, marker: str, space: str = "") -> Steps[None]:
        """What follows a marker, which was read. space: white space before it, for text that turns out to be no call."""
        row = self._rows.get(marker)
        if row is None:
            return
        yield from self._calls(source, row, space + marker, marker)

    def read_bare(self, source: Source) -> Steps[bool]:
        """A call without a marker, or a list of them, at the beginning of an answer or after another one. False: there was none."""
        if self._bare is None:
            return False
        source.record()
        yield from source.skip_space()
        if self.n_done and (yield from source.peek()) in (";", ","):
            source.take(1)
            yield from source.skip_space()
        n_done = self.n_done
        if (yield from source.peek()) in ("{", "["):
            yield from self._calls(source, self._bare, source.recorded(), "")
        else:
            text = source.recorded()
            if text.strip() or not self.n_done:
                self._out(TextDelta(text))
        return self.n_done > n_done

    def read_arguments(self, source: Source, name: str, before: str) -> Steps[None]:
        """The arguments of a call whose name was read; before: how it was written."""
        source.record()
        call = _Call(self._n_announced, self._out, self._whole)
        try:
            yield from source.skip_space()
            if (yield from source.peek()) != "{":
                raise IllFormed
            call.open(name)
            yield from value(source, call.arguments)
        except IllFormed:
            self._give_back(call, before + source.recorded())
        else:
            self._complete(call)
            source.recorded()

    def _give_back(self, call: _Call, text: str) -> None:
        self._n_announced += call.announced
        call.broken()
        self._out(TextDelta(text))

    def _complete(self, call: _Call) -> None:
        call.done()
        self._n_announced += 1
        self.n_done += 1

    def _calls(self, source: Source, row: CallFormat, before: str, marker: str) -> Steps[None]:
        shape = row.shape
        source.record()
        listed = False
        while True:
            call = _Call(self._n_announced, self._out, self._whole)
            try:
                yield from source.skip_space()
                if not listed and (yield from source.peek()) == "[":
                    source.take(1)
                    listed = True
                    yield from source.skip_space()
                if (yield from source.peek()) == "{":
                    yield from self._object(source, row, call, bare=not marker)
                elif not marker or shape.name_key:
                    raise IllFormed
                else:
                    rest = shape.begin[shape.begin.index(marker) + 1 :] if marker in shape.begin else shape.begin
                    yield from _expect(source, rest)
                    yield from self._headed(source, row, call)
            except IllFormed:
                self._give_back(call, before + source.recorded())
                return
            self._complete(call)
            source.recorded()
            if listed and (yield from source.skip(("]",))):
                listed = False
            elif (listed and (yield from source.skip((",",)))) or (marker and (yield from _another(source, row))):
                source.record()
                before = ""
                continue
            for word in shape.end:
                yield from source.skip((word,), cut=True)
            return

    def _object(self, source: Source, row: CallFormat, call: _Call, bare: bool) -> Steps[None]:
        """A call that is a JSON object: its members in any order, others skipped."""
        pending: list[str] = []
        name = yield from self._members_of_call(source, row, call, bare, pending)
        if not name or (bare and not pending and not call.name):
            raise IllFormed
        if not call.name:
            call.open(name)
            call.arguments("".join(pending) or "{}")

    def _members_of_call(self, source: Source, row: CallFormat, call: _Call, bare: bool, pending: list[str]) -> Steps[str]:
        """Returns the name; arguments go to the call once it has one, else to pending."""
        source.take(1)
        name = ""
        between = False
        while not (yield from source.skip(("}",))):
            if between:
                yield from _expect(source, (",",))
            between = True
            key = yield from _text(source)
            yield from _expect(source, (":",))
            yield from source.skip_space()
            first = yield from source.peek()
            if key in (row.shape.name_key, *_NAME_KEYS) or (key == "function" and first == '"'):
                name = yield from _text(source)
                if not name or (bare and self._parameters and name not in self._parameters):
                    raise IllFormed
            elif key in (row.shape.arguments_key, *_ARGUMENT_KEYS):
                if name and not call.name and first == "{":
                    call.open(name)
                yield from _arguments(source, call.arguments if call.name else pending.append)
            elif key == "function" and first == "{":
                name = yield from self._members_of_call(source, row, call, bare, pending)
            elif bare and key not in _BARE_KEYS:
                raise IllFormed
            else:
                yield from value(source, _ignore)
        return name

    def _headed(self, source: Source, row: CallFormat, call: _Call) -> Steps[None]:
        """A call whose name, and an id perhaps, stand before its arguments."""
        name = ""
        header = row.shape.header
        skipped = False
        for i, part in enumerate(header):
            following = header[i + 1] if i + 1 < len(header) else ()
            if part == "«name»":
                name = yield from source.run(_up_to(following), _MAX_NAME)
                if not name:
                    raise IllFormed
            elif part == "«id»":
                if not skipped:
                    yield from source.run(_up_to(following), _MAX_NAME)
            elif following == "«id»":  # an id may be left out
                skipped = not (yield from source.skip(part[:1]))
                if not skipped:
                    yield from _expect(source, part[1:])
            elif not (i == len(header) - 1 and (yield from _at_object(source, row))):
                yield from _expect(source, part)
        if row.argument:
            call.open(name)
            yield from self._tagged(source, row, call)
        elif row.dialect == "json":
            if not (yield from _at_object(source, row)):
                raise IllFormed
            call.open(name)
            yield from value(source, call.arguments)
        else:
            bracket = row.shape.bracket
            yield from _expect(source, ("{" if bracket == "}" else "(",))
            call.open(name)
            call.arguments("{")
            yield from members(source, call.arguments, DIALECTS[row.dialect], bracket, ":" if bracket == "}" else "=")
            call.arguments("}")

    def _tagged(self, source: Source, row: CallFormat, call: _Call) -> Steps[None]:
        """Arguments that stand in tags of their own."""
        shape = argument_shape(row.argument)
        schema = self._parameters.get(call.name, {})
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        separator = "{"
        while True:
            yield from source.skip_space()
            if (yield from source.follows(row.shape.end[0])):
                call.arguments(separator.replace(", ", "") + "}")
                return
            yield from _expect(source, shape.before)
            key = (yield from source.run(_up_to(shape.between), _MAX_NAME)).strip()
            if not key:
                raise IllFormed
            yield from _expect(source, shape.between)
            if shape.newline_before and (yield from source.follows("\n")):
                source.take(1)
            call.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from _tagged_value(source, shape, call, kind_of(properties.get(key), schema))
            yield from _expect(source, shape.after[1:])
            separator = ", "


def _tagged_value(source: Source, shape: ArgumentShape, call: _Call, kind: Kind) -> Steps[None]:
    end = shape.after[0]
    ends = Markers(("\n" + end, end) if shape.newline_after else (end,))
    if kind.text_only:
        call.arguments('"')
        found = yield from ends.next(source, lambda text: call.arguments(escaped(text)), cut=True)
        if found:
            call.arguments('"')
    else:
        parts: list[str] = []
        found = yield from ends.next(source, parts.append, cut=True)
        if found:
            call.arguments(as_json("".join(parts), kind))
    if not found:
        raise IllFormed


def _arguments(source: Source, emit: Callable[[str], None]) -> Steps[None]:
    """The arguments of a call that is an object: an object, its JSON text as a string, or null."""
    first = yield from source.peek()
    if first == "{":
        yield from value(source, emit)
        return
    parts: list[str] = []
    yield from value(source, parts.append)
    try:
        given = json.loads("".join(parts))
        given = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except (ValueError, RecursionError):
        raise IllFormed from None
    if not isinstance(given, dict):
        raise IllFormed
    emit(json.dumps(given, ensure_ascii=False))


def _another(source: Source, row: CallFormat) -> Steps[bool]:
    """Whether one more object follows before the tag that closes the calls."""
    if not row.shape.name_key:
        return False
    yield from source.skip_space()
    return (yield from source.peek()) == "{"


def _at_object(source: Source, row: CallFormat) -> Steps[bool]:
    if row.dialect != "json" or row.argument:
        return False
    yield from source.skip_space()
    return (yield from source.peek()) == "{"


def _expect(source: Source, words: Sequence[str]) -> Steps[None]:
    if not (yield from source.skip(words)):
        raise IllFormed


def _text(source: Source) -> Steps[str]:
    """A JSON string's text."""
    parts: list[str] = []
    yield from source.skip_space()
    if (yield from source.peek()) != '"':
        raise IllFormed
    source.take(1)
    yield from string(source, parts.append, JSON, '"')
    return str(json.loads("".join(parts)))


def _up_to(following: Sequence[str] | str) -> re.Pattern[str]:
    """Characters of a name or id before these words."""
    stop = re.escape(following[0][0]) if following and not isinstance(following, str) else ""
    return re.compile(rf"[^\s{{}}\[\]()<>\"'{stop}]*")


def _ignore(text: str) -> None:
    """A member that no call needs."""


def _parameters(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function", tool)
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    return str(function.get("name", "")), parameters if isinstance(parameters, Mapping) else {}
