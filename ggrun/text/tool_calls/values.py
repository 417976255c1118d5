"""Arguments that are written as plain text, made JSON as their schema says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_PYTHON_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
_TYPES: Final[dict[type, tuple[str, ...]]] = {
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    dict: ("object",),
    list: ("array",),
    type(None): ("null",),
}
_MAX_REFS: Final = 8
_ANYTHING: Final = frozenset(name for names in _TYPES.values() for name in names)


@dataclass(frozen=True, slots=True)
class Kind:
    """JSON types a value may have."""

    types: frozenset[str]

    @property
    def text_only(self) -> bool:
        return self.types == {"string"}


def kind_of(schema: Any, root: Any = None) -> Kind:
    """What a property's schema says; everything, where it does not say it plainly. root: the schema that its $ref refers to."""
    return Kind(_types(schema, root, 0))


def resolved(schema: Any, root: Any) -> Any:
    """The schema that a schema which is a reference within root refers to; itself otherwise."""
    for _ in range(_MAX_REFS):
        ref = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(ref, str) or not ref.startswith("#/"):
            return schema
        target = root
        for name in ref[2:].split("/"):
            target = target.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        schema = target
    return schema


def _types(schema: Any, root: Any, depth: int) -> frozenset[str]:
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > 8:
        return _ANYTHING
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return frozenset(name for item in values for name in _TYPES.get(type(item), ())) or _ANYTHING
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return frozenset().union(*(_types(option, root, depth + 1) for option in schema[key]))
    given = schema.get("type")
    names = frozenset([given] if isinstance(given, str) else given if isinstance(given, list) else ())
    return names & _ANYTHING or _ANYTHING


def as_json(text: str, kind: Kind) -> str:
    """The JSON text of a value that was written as `text`; a JSON string where no other type fits."""
    bare = text.strip()
    bare = _PYTHON_WORDS.get(bare, bare)
    try:
        found = _TYPES[type(json.loads(bare, parse_constant=_refuse))]
    except (ValueError, RecursionError):
        found = ()
    if found and found != ("string",) and kind.types & set(found):
        return bare
    return json.dumps(text, ensure_ascii=False)


def _refuse(word: str) -> None:
    raise ValueError(word)
