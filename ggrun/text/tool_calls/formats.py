"""How models write tool calls: a row for each format, and what follows from a row for reading and spelling calls.

A row is a call as the model writes it, with «name», «id» and «arguments» where these stand; where arguments are written one by one,
`argument` is one of them, with «key» and «value». Adding a format is adding a row. Knows nothing of templates or tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

SLOTS: Final = re.compile("(«[a-z]+»)")
_WORDS: Final = re.compile(r"<[^<>\s]*>?|\[[^\[\]\s]*\]?|[^<\[\s]+")
_NAME_KEY: Final = re.compile(r'"(\w+)"\s*:\s*"$')
_ARGUMENTS_KEY: Final = re.compile(r'"(\w+)"\s*:\s*$')


@dataclass(frozen=True)
class CallFormat:
    """One row. first, last: what stands once before and after all calls of an answer; between: between two of them.

    dialect: how values are written (of loose_json.DIALECTS). id_pattern: what an id looks like. signature: what a template contains whose
    model uses this format, if the template does not show a call. also: rows such models use beside it. families: models that use it.
    """

    name: str
    call: str
    first: str = ""
    last: str = ""
    between: str = ""
    argument: str = ""
    dialect: str = "json"
    id_pattern: str = "[a-zA-Z0-9]{9}"
    signature: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    families: str = ""

    @cached_property
    def shape(self) -> Shape:
        """What follows for reading it."""
        return _shape(self)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must be seen to recognize its calls, though they may be special tokens, which are not shown."""
        spelled = (self.first, self.last, *SLOTS.split(self.call), *SLOTS.split(self.argument))
        texts = [word for part in spelled if not SLOTS.match(part) for word in words(part)]
        marks = (w for w in texts if len(w) > 2 and (w[0] in "<[" or w[-1] in ">]"))
        quotes = ('<|"|>',) if self.dialect == "gemma" else ()
        return tuple(dict.fromkeys((*marks, *quotes)))

    def spell(self, name: str, arguments: Mapping[str, Any], id: str = "") -> str:
        """A call as the model writes it, without first and last."""
        if self.argument:
            text = "".join(self.argument.replace("«key»", key).replace("«value»", plain(v)) for key, v in arguments.items())
        elif self.dialect == "json":
            text = json.dumps(arguments, ensure_ascii=False)
        else:
            text = _loose_members(arguments, self)
        return self.call.replace("«name»", name).replace("«id»", id).replace("«arguments»", text)


@dataclass(frozen=True, slots=True)
class Shape:
    """begin: words that open a call, the first of which gives it away; none where a call is a bare JSON object. opener: of all calls.

    listed: calls stand in a list. name_key: calls are JSON objects. header: literal words and slots between begin and the arguments.
    bracket: the arguments' own closing bracket, where they are not JSON. end: words after the arguments.
    """

    begin: tuple[str, ...]
    opener: tuple[str, ...]
    listed: bool
    name_key: str
    arguments_key: str
    header: tuple[tuple[str, ...] | str, ...]
    bracket: str
    end: tuple[str, ...]

    @property
    def trigger(self) -> str:
        """The text that gives calls away; "" for bare JSON."""
        return next(iter((*self.opener, *self.begin)), "")


@dataclass(frozen=True, slots=True)
class ArgumentShape:
    """Words around the key and the value of an argument that is written alone; newline: a line break belongs to each side's words."""

    before: tuple[str, ...]
    between: tuple[str, ...]
    after: tuple[str, ...]
    newline_before: bool
    newline_after: bool


def words(text: str) -> list[str]:
    """What must stand there whatever white space is between: tags and runs of other characters."""
    return _WORDS.findall(text)


@lru_cache(maxsize=64)
def argument_shape(argument: str) -> ArgumentShape:
    before, rest = argument.split("«key»")
    between, after = rest.split("«value»")
    return ArgumentShape(tuple(words(before)), tuple(words(between)), tuple(words(after)), between.endswith("\n"), after.startswith("\n"))


def _shape(row: CallFormat) -> Shape:
    before, _, after = row.call.partition("«arguments»")
    parts = [part for part in SLOTS.split(before) if part]
    name_key = arguments_key = bracket = ""
    header: list[tuple[str, ...] | str] = []
    begin = parts.pop(0) if parts[0] not in ("«name»", "«id»") else ""
    if key := _NAME_KEY.search(begin):
        name_key = key[1]
        found = _ARGUMENTS_KEY.search(parts[-1])
        arguments_key = found[1] if found else "arguments"
        begin = begin[: begin.rindex("{")]
        after = after[after.rindex("}") + 1 :]
    else:
        header = [part if part.startswith("«") else tuple(words(part)) for part in parts]
        if row.dialect != "json":
            last = header[-1]
            header[-1] = (*last[:-1], last[-1][:-1]) if isinstance(last, tuple) and last[-1][:-1] else last[:-1]
            bracket = after[0]
            after = after[1:]
    opener = words(row.first)
    listed = bool(opener) and opener[-1] == "["
    if listed:
        opener.pop()
    return Shape(tuple(words(begin)), tuple(opener), listed, name_key, arguments_key, tuple(header), bracket, tuple(words(after)))


def plain(value: Any) -> str:
    """A value that stands in tags: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _loose_members(arguments: Mapping[str, Any], row: CallFormat) -> str:
    if row.dialect == "gemma":
        return ",".join(f"{key}:{_gemma(value)}" for key, value in sorted(arguments.items()))
    return ", ".join(f"{key}={_python(value)}" for key, value in arguments.items())


def _python(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_gemma(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_gemma, value)) + "]"
    return json.dumps(value)


_JSON: Final = '{"name": "«name»", "arguments": «arguments»}'

GENERIC: Final = CallFormat(
    "generic", f"<tool_call>\n{_JSON}\n</tool_call>", between="\n", signature=("<tool_call>",), also=("bare",),
    families="templates that know no tools: ggrun describes them and asks for this",
)  # fmt: skip
HARMONY: Final = CallFormat(
    "harmony", "<|channel|>commentary to=functions.«name» <|constrain|>json<|message|>«arguments»<|call|>", families="gpt-oss"
)

# In the order they are tried; a template that shows a call spelled another way gets a row of its own (derive.py).
FORMATS: Final[tuple[CallFormat, ...]] = (
    CallFormat("hermes", GENERIC.call, between="\n", also=("bare",), families="Hermes 2 and 3, Qwen 2.5, Qwen 3 and most of their kin"),
    CallFormat(
        "qwen3-coder", "<tool_call>\n<function=«name»>\n«arguments»</function>\n</tool_call>", between="\n",
        argument="<parameter=«key»>\n«value»\n</parameter>\n", signature=("<function=", "<parameter="),
        families="Qwen3-Coder, Qwen 3.5",
    ),
    CallFormat(
        "glm4", "<tool_call>«name»\n«arguments»</tool_call>", between="\n",
        argument="<arg_key>«key»</arg_key>\n<arg_value>«value»</arg_value>\n", signature=("<arg_key>", "<arg_value>"),
        families="GLM 4.5 and later",
    ),
    CallFormat(
        "minimax", '<invoke name="«name»">\n«arguments»</invoke>', between="\n",
        first="<minimax:tool_call>\n", last="\n</minimax:tool_call>",
        argument='<parameter name="«key»">«value»</parameter>\n', signature=("<minimax:tool_call>",),
        families="MiniMax-M2",
    ),
    CallFormat(
        "mistral", '{"name": "«name»", "arguments": «arguments», "id": "«id»"}', first="[TOOL_CALLS][", between=", ", last="]",
        families="Mistral 7B v0.3, Nemo",
    ),
    CallFormat(
        "mistral-ids", "[TOOL_CALLS]«name»[CALL_ID]«id»[ARGS]«arguments»", signature=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        families="Mistral Small 3.2",
    ),
    CallFormat(
        "mistral-args", "[TOOL_CALLS]«name»[ARGS]«arguments»", signature=("[TOOL_CALLS]", "[ARGS]"),
        families="Magistral, Devstral",
    ),
    CallFormat(
        "mistral-list", _JSON, first="[TOOL_CALLS][", between=", ", last="]", signature=("[TOOL_CALLS]",),
        families="others' templates for Mistral's models",
    ),
    CallFormat(
        "deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>«name»\n```json\n«arguments»\n```<｜tool▁call▁end｜>",
        first="<｜tool▁calls▁begin｜>", last="<｜tool▁calls▁end｜>", between="\n", signature=("<｜tool▁calls▁begin｜>", "```"),
        families="DeepSeek V3, R1",
    ),
    CallFormat(
        "deepseek-v3.1", "<｜tool▁call▁begin｜>«name»<｜tool▁sep｜>«arguments»<｜tool▁call▁end｜>",
        first="<｜tool▁calls▁begin｜>", last="<｜tool▁calls▁end｜>", signature=("<｜tool▁calls▁begin｜>",),
        families="DeepSeek V3.1 and later",
    ),
    CallFormat(
        "solar", "<|tool_call:begin|>«id»<|tool_call:name|>«name»<|tool_call:args|>«arguments»<|tool_call:end|>",
        first="<|tool_calls|>", last="<|calls|>", signature=("<|tool_call:begin|>",),
        families="Solar Open",
    ),
    CallFormat(
        "kimi", "<|tool_call_begin|>functions.«name»:«id»<|tool_call_argument_begin|>«arguments»<|tool_call_end|>",
        first="<|tool_calls_section_begin|>", last="<|tool_calls_section_end|>",
        id_pattern="[0-9]{1,2}", signature=("<|tool_call_begin|>",),
        families="Kimi K2",
    ),
    CallFormat(
        "gemma4", "<|tool_call>call:«name»{«arguments»}<tool_call|>", dialect="gemma", signature=("<|tool_call>", "<tool_call|>"),
        families="Gemma 4",
    ),
    CallFormat(
        "python-list", "«name»(«arguments»)", first="<|tool_call_start|>[", last="]<|tool_call_end|>", between=", ", dialect="python",
        signature=("<|tool_call_start|>",),
        families="LFM2",
    ),
    CallFormat(
        "llama3-builtin", "<|python_tag|>«name».call(«arguments»)", dialect="python",
        families="Llama 3.1 to 3.3, for tools they know by heart",
    ),
    CallFormat(
        "llama3", '{"name": "«name»", "parameters": «arguments»}', between="; ", signature=("<|start_header_id|>", '"parameters"'),
        also=("llama3-builtin",),
        families="Llama 3.1 to 3.3",
    ),
    CallFormat("granite", _JSON, first="<|tool_call|>[", last="]", between=", ", signature=("<|tool_call|>",), families="Granite 3"),
    GENERIC,
    CallFormat("bare", _JSON, between="\n", families="what models write that forget the tags"),
)  # fmt: skip
BY_NAME: Final = {row.name: row for row in (*FORMATS, HARMONY)}
