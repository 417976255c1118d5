"""Grammars, in llguidance's Lark, that make a model write a tool call in its own format with arguments that follow the tool's schema.

Knows the formats' rows and how thoughts may precede calls; must not know how a grammar is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ggrun.text.error import TextError
from ggrun.text.tool_calls.formats import HARMONY, SLOTS, CallFormat, plain
from ggrun.text.tool_calls.values import kind_of, resolved

if TYPE_CHECKING:
    from ggrun.text.reasoning import ReasoningStyle
    from ggrun.text.tokenizer import Tokenizer

# A space, or a line's end and an indentation, between the parts of JSON, and no more.
_SPACES: Final = {"whitespace_flexible": True, "whitespace_pattern": r" |\n {0,24}", "item_separator": ",", "key_separator": ":"}
_ANY_TEXT: Final = r"/(.|\n)*/"
_DEFINITIONS: Final = ("$defs", "definitions")
# what may name or allow other properties of an object than its own list does
_OPENERS: Final = frozenset("additionalProperties patternProperties $ref allOf anyOf oneOf minProperties maxProperties".split())
_MAX_DEPTH: Final = 16  # of schemas in each other, where their grammar is written here


def call_grammar(
    row: CallFormat,
    tools: Sequence[Mapping[str, Any]],
    choice: str = "required",
    parallel: bool = True,
    *,
    tokenizer: Tokenizer | None = None,
    reasoning: ReasoningStyle | None = None,
    opened: bool = False,
    prepare: Callable[[Any], Any] = lambda schema: schema,
) -> str:
    """A Lark grammar for an answer that calls these OpenAI function tools.

    choice: "required" for any of them, the name of one, or "auto": text in which a call, once it begins, is held to its schema; "" where
    the format has no mark that tells so. parallel: several calls may follow each other, if the format has that. tokenizer: tells which
    marks are special tokens; without, none is. reasoning: a thought may come first; opened: the prompt began it. prepare: what makes a
    schema one for llguidance. TextError for a choice that is none of the tools, and for no tools at all.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if choice not in ("required", "auto"):
        functions = [function for function in functions if function["name"] == choice]
        if not functions:
            raise TextError(f"tool_choice names the function {choice!r:.80}, which is not among the tools")
    if not functions:
        raise TextError("a tool call is required, but no tools are given")
    if choice == "auto" and (not row.shape.trigger or row is HARMONY):
        return ""
    return _Grammar(row, tokenizer, prepare).write(functions, choice == "auto", parallel, reasoning, opened)


class _Grammar:
    def __init__(self, row: CallFormat, tokenizer: Tokenizer | None, prepare: Callable[[Any], Any]) -> None:
        self._row = row
        self._tokenizer = tokenizer
        self._prepare = prepare
        self._rules = {"TEXT": _ANY_TEXT}

    def write(
        self, functions: Sequence[Mapping[str, Any]], auto: bool, parallel: bool, reasoning: ReasoningStyle | None, opened: bool
    ) -> str:
        row = self._row
        begin, *_ = SLOTS.split(row.call)
        for i, function in enumerate(functions):
            self._rules[f"call_{i}"] = self._call(i, function, row.call[len(begin) :])
        self._rules["call"] = " | ".join(f"call_{i}" for i in range(len(functions)))
        rest = "call"
        if parallel and row is not HARMONY:
            rest += f" ({self._literal(row.between + begin)} call)*"
        rest += f" {self._literal(row.last)}"
        start = (row.first + begin).lstrip()
        lead = self._thought(reasoning, opened) if reasoning else ""
        if not auto:
            self._rules["start"] = f"{lead} {self._literal(start)} {rest}"
        elif self._literal(row.shape.trigger).startswith("<["):
            marks = [self._literal(mark) for mark in reasoning.dropped] if reasoning else []
            said = " | ".join(["TEXT", *(mark for mark in marks if mark.startswith("<["))])
            self._rules["start"] = f"{lead} ({said})* ({self._literal(start)} {rest})?"
        else:
            trigger = row.shape.trigger
            held = f"{self._literal(start.removeprefix(trigger))} {rest}"
            said = f"(TEXT | {self._until(trigger)} {held})"
            self._rules["start"] = f"{lead} {said}"
            if lead and reasoning and not opened and not self._literal(reasoning.begin).startswith("<["):
                # What begins with a thought is one: else its text would do as any text, and a call be held that it only thinks of.
                self._rules["UNTHOUGHT"] = f"/(.|\\n)*/ & ~/[ \\n]*{_escaped(reasoning.begin)}(.|\\n)*/"
                self._rules["begun[lazy]"] = f"UNTHOUGHT {self._literal(trigger)}"
                self._rules["start"] = f"{lead.removesuffix('?')} {said} | UNTHOUGHT | begun {held}"
        return "".join(f"{name}: {body}\n" for name, body in self._rules.items())

    def _call(self, i: int, function: Mapping[str, Any], spelling: str) -> str:
        """A call behind what all calls begin with."""
        name = str(function["name"])
        parameters = self._prepare(function.get("parameters") or {})
        schema = _closed({**parameters, "type": "object"} if isinstance(parameters, Mapping) else {"type": "object"}, bool(parameters))
        spelling = spelling.replace("«name»", _quoted(name)[1:-1] if self._row.shape.name_key else name)
        symbols = []
        for part in SLOTS.split(spelling):
            if part == "«arguments»":
                symbols.append(self._arguments(f"arguments_{i}", schema))
            elif part == "«id»":
                symbols.append(self._rule("ID", f"/{self._row.id_pattern}/"))
            else:
                symbols.append(self._literal(part))
        return " ".join(symbols)

    def _arguments(self, name: str, schema: Mapping[str, Any]) -> str:
        if not self._row.argument and self._row.dialect == "json":
            return self._rule(name, _json(schema))
        properties, required = _members(schema)
        items = []
        for j, (key, member) in enumerate(properties.items()):
            rule = f"{name}_{j}"
            if self._row.argument:
                body = self._tagged(rule, key, member, schema)
            elif self._row.dialect == "python":
                body = f"{_quoted(key + '=')} {self._rule(rule + '_value', _json(member, schema))}"
            else:
                body = f"{_quoted(key + ':')} {self._bare(rule + '_value', member, schema)}"
            items.append((self._rule(rule, body), key in required))
        if self._row.argument:
            return self._rule(name, " ".join(rule if needed else f"{rule}?" for rule, needed in items))
        return self._separated(name, items, ", " if self._row.dialect == "python" else ",")

    def _separated(self, name: str, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Items in this order, those that are not needed perhaps; a separator between any two that are there."""
        first, more = '""', '""'
        for j in range(len(items) - 1, -1, -1):
            rule, needed = items[j]
            after = self._rule(f"{name}_after_{j}", more)
            given = f"{_quoted(separator)} {rule} {after}"
            first, more = (f"{rule} {after}", given) if needed else (f"{rule} {after} | {first}", f"{given} | {after}")
        return self._rule(name, first)

    def _tagged(self, name: str, key: str, schema: Any, root: Mapping[str, Any]) -> str:
        """An argument in tags of its own; a value that may be text is written as it is, up to the tag that ends it."""
        before, end = self._row.argument.replace("«key»", key).split("«value»")
        schema = resolved(schema, root)
        options = schema.get("enum", [schema["const"]] if "const" in schema else None) if isinstance(schema, Mapping) else None
        if isinstance(options, list) and options:
            value = " | ".join(_quoted(plain(option)) for option in options)
            return f"{self._literal(before)} ({value}) {self._literal(end)}"
        if "string" not in kind_of(schema, root).types:
            return f"{self._literal(before)} {self._rule(name + '_value', _json(schema, root))} {self._literal(end)}"
        text = _text_without(end.strip(), schema if kind_of(schema, root).text_only else {})
        return f"{self._literal(before)} {self._rule(name.upper(), text)} {self._literal(end)}"

    def _bare(self, name: str, schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
        """A value as Gemma writes it."""
        schema = resolved(schema, root)
        kind = kind_of(schema, root)
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            schema = {}
        choices: list[Any] = []
        if isinstance(options := schema.get("enum", [schema["const"]] if "const" in schema else None), list):
            return self._rule(name, " | ".join(self._bare_literal(option) for option in options))
        for branch in ("anyOf", "oneOf"):
            if isinstance(schema.get(branch), list):
                return self._rule(
                    name, " | ".join(self._bare(f"{name}_{j}", part, root, depth + 1) for j, part in enumerate(schema[branch]))
                )
        for type_ in sorted(kind.types):
            if type_ == "string":
                terminal = self._rule(name.upper(), _text_without(_QUOTE, schema if kind.text_only else {}))
                choices.append(f"{self._literal(_QUOTE)} {terminal} {self._literal(_QUOTE)}")
            elif type_ == "array":
                item = self._bare(f"{name}_item", schema["items"], root, depth + 1) if schema.get("items") else self._anything()
                choices.append(f'"[" ({item} ("," {item})*)? "]"')
            elif type_ == "object":
                properties, required = _members(schema)
                items = []
                for j, (key, part) in enumerate(properties.items()):
                    member = f"{_quoted(key + ':')} {self._bare(f'{name}_{j}_value', part, root, depth + 1)}"
                    items.append((self._rule(f"{name}_{j}", member), key in required))
                choices.append(f'"{{" {self._separated(name + "_members", items, ",")} "}}"' if items else '"{}"')
            else:
                choices.append(self._rule(f"{name}_{type_}", _json({**schema, "type": type_}, root)))
        return self._rule(name, " | ".join(choices))

    def _anything(self) -> str:
        """A scalar: all that is said of a list whose items are not described."""
        self._rules["scalar"] = f'{self._literal(_QUOTE)} {self._until(_QUOTE)} | %json {{"type": ["number", "boolean"]}}'
        return "scalar"

    def _bare_literal(self, value: Any) -> str:
        quote = self._literal(_QUOTE)
        return f"{quote} {_quoted(value)} {quote}" if isinstance(value, str) else _quoted(plain(value))

    def _thought(self, style: ReasoningStyle, opened: bool) -> str:
        if not self._literal("<|end|>" if style.channels else style.end):
            return ""  # what ends a thought ends the answer, in this vocabulary
        if style.channels:
            return f"({self._literal('<|channel|>analysis<|message|>')} {self._until('<|end|>')} {self._literal('<|start|>assistant')})*"
        space = self._rule("SPACE", r"/[ \n]{0,4}/")
        rest = f"{self._until(style.end)} {space} {self._literal(style.then)}"
        begin = f"{space} {self._literal(style.begin)}"
        if "<[" not in begin:  # one lexeme, or else any text would seem to begin with the space
            begin = self._rule("THINK", f"/[ \\n]{{0,4}}{_escaped(style.begin)}/")
        return rest if opened else f"({begin} {rest})?"

    def _until(self, mark: str) -> str:
        """Any text, and the mark that ends it."""
        literal = self._literal(mark)
        if literal.startswith("<["):
            return f"TEXT {literal}"
        name = f"until_{len(self._rules)}"
        for known, body in self._rules.items():
            if body == f"{_ANY_TEXT} {literal}":
                return known.removesuffix("[lazy]")
        self._rules[f"{name}[lazy]"] = f"{_ANY_TEXT} {literal}"
        return name

    def _literal(self, text: str) -> str:
        """A text as symbols: special tokens by their ids. Tokens that end a generation are left out: the answer's end stands for them."""
        if self._tokenizer is None:
            return _quoted(text) if text else ""
        ends = self._tokenizer.end_of_generation
        symbols: list[str] = []
        held = ""
        for part in self._tokenizer.split_special(text):
            if isinstance(part, str):
                held += part
            elif part in ends or self._tokenizer.is_special(part):
                symbols += [_quoted(held)] if held else []
                symbols += [] if part in ends else [f"<[{part}]>"]
                held = ""
            else:
                held += self._tokenizer.token_text(part)
        return " ".join([*symbols, _quoted(held)] if held else symbols)

    def _rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name


_QUOTE: Final = '<|"|>'


def _json(schema: Any, root: Mapping[str, Any] | None = None) -> str:
    """JSON that follows a schema, which may refer to definitions of root."""
    shared = {key: root[key] for key in _DEFINITIONS if root and key in root}
    if not isinstance(schema, Mapping):
        schema = {} if schema is True else {"not": {}} if schema is False else {}
    return f"%json {json.dumps({**shared, **schema, 'x-guidance': _SPACES})}"


def _closed(schema: dict[str, Any], described: bool) -> dict[str, Any]:
    """A function's parameters, and no arguments beside those it lists, unless it says that there may be others or what they are."""
    properties = schema.get("properties", None if described else {})
    if not isinstance(properties, Mapping) or not _OPENERS.isdisjoint(schema) or not set(schema.get("required", ())) <= set(properties):
        return schema
    return {**schema, "properties": properties, "additionalProperties": False}


def _members(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[str]]:
    properties, required = schema.get("properties"), schema.get("required")
    return properties if isinstance(properties, Mapping) else {}, required if isinstance(required, list) else ()


def _text_without(end: str, schema: Mapping[str, Any]) -> str:
    """The regular expression of a text in which `end` does not come, and which follows what a schema asks of a text."""
    patterns = []
    least, most = (limit if isinstance(limit := schema.get(key), int) else "" for key in ("minLength", "maxLength"))
    if least != "" or most != "":
        patterns.append(f"/(.|\\n){{{least or 0},{most}}}/")
    if isinstance(pattern := schema.get("pattern"), str):
        before = "" if pattern.startswith("^") else "(.|\\n)*"
        after = "" if pattern.endswith("$") else "(.|\\n)*"
        inner = re.sub(r"(\\.)|/", lambda m: m[1] or r"\/", pattern.removeprefix("^").removesuffix("$"), flags=re.DOTALL)
        patterns.append(f"/{before}({inner.replace(chr(10), chr(92) + 'n')}){after}/")
    return " & ".join([*patterns, f"~/(.|\\n)*{_escaped(end)}(.|\\n)*/"])


def _escaped(text: str) -> str:
    """A text within a regular expression of Lark's."""
    return re.sub(r"([!-/:;=?@\[-`{-~])", r"\\\1", text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
