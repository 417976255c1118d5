"""JSON schemas made ready for llguidance: bounded, without what means nothing, and with the place of what is not supported.

Knows where a schema holds other schemas; must not know vocabularies. What a keyword means is llguidance's to decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from ggrun.engine.constraint import ConstraintError

MAX_DEPTH: Final = 64  # of lists and objects in each other
MAX_SCHEMA: Final = 1 << 18  # characters of its JSON text
_MAX_PATTERNS: Final = 8  # that one text must match
_MAX_TRIES: Final = 300  # subschemas looked at to find the one that is wrong

_ONE: Final = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames",
               "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DEFINITIONS: Final = ("$defs", "definitions", "$schema", "$id")  # of the root, which every part of it may need

# keyword -> the value with which it asks nothing
_IDLE: Final[Mapping[str, Any]] = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True, "propertyNames": True,
                                   "minContains": 0, "dependentRequired": {}, "dependentSchemas": {}, "x-guidance": ...}  # fmt: skip

# formats that tell how a program keeps a value, and nothing of how it is written: OpenAPI's, and those that pydantic makes up
_OF_PROGRAMS: Final = frozenset("""int8 int16 int32 int64 uint8 uint16 uint32 uint64 float double decimal binary byte password path
                                file-path directory-path json-string""".split())

_NOT_BARE: Final = "^(?!^[-+.]*$)"  # how pydantic begins a Decimal's pattern: there must be something beside signs and points

# what llguidance says -> what we say
_SENTENCES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"Unimplemented keys: \[(.*)\]"), r"\1 is not supported"),
    (re.compile(r"oneOf constraints are not supported.*"),
     "oneOf whose branches may overlap is not supported: tell them apart by a const or a type, or use anyOf"),
    (re.compile(r"Unknown format: (.*)"), r"the format \1 is not supported"),
    (re.compile(r"min/maxProperties only supported.*"),
     "minProperties and maxProperties are supported only where every listed property is required"),
    (re.compile(r"Resource '(.*)' is not present.*"), r"$ref to \1 is not supported: only references within the schema are"),
    (re.compile(r"Pointer '(.*)' does not exist"), r"$ref points to #\1, which does not exist"),
)  # fmt: skip

# what separates the parts of a JSON text: a space, or a line's end and an indentation, and no more, so that no model loses itself there
OPTIONS: Final[dict[str, Any]] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r" |\n( {0,24}|\t{0,12})",
    "coerce_one_of": False,
    "lenient": False,
}


def read_schema(value: Any) -> Any:
    """A schema, given as such or as JSON text, without keywords that ask nothing. ConstraintError when it is none, or too large."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"the JSON schema is no valid JSON: {error}") from None
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise ConstraintError(f"a JSON schema must be an object, not {json.dumps(value, default=str):.60}")
    _check_depth(value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"the JSON schema is no valid JSON: {error}") from None
    if len(text) > MAX_SCHEMA:
        raise ConstraintError(f"the JSON schema has {len(text)} characters; ggrun takes up to {MAX_SCHEMA}")
    schema: dict[str, Any] = _cleaned(value)
    _check_patterns(schema)
    return schema


def explained(schema: Any, error: str, fails: Callable[[Any], str]) -> str:
    """What is wrong where, in a sentence. error: llguidance's about the whole; fails: its about another schema, "" for none."""
    at, part = "#", schema
    tries = 0
    seen = {at}
    root = {key: schema[key] for key in _DEFINITIONS if key in schema} if isinstance(schema, dict) else {}
    found = True
    while found:
        found = False
        for path, child in _parts(part, at, schema):
            if path in seen or not isinstance(child, dict) or tries >= _MAX_TRIES:
                continue
            seen.add(path)
            tries += 1
            if said := fails({**root, **child}):
                at, part, error, found = path, child, said, True
                break
    for pattern, sentence in _SENTENCES:
        if match := pattern.search(error):
            error = match.expand(sentence)
            break
    return f"{error} (at {at})"


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ConstraintError(f"the JSON schema is nested more than {MAX_DEPTH} levels deep")
        level = [x for v in level if isinstance(v, (dict, list, tuple)) for x in (v.values() if isinstance(v, dict) else v)]


def _check_patterns(root: dict[str, Any]) -> None:
    """Refuse texts that many regular expressions must match at once: what it takes to put them together doubles with each."""
    seen: set[int] = set()
    todo: list[tuple[Any, str]] = [(root, "#")]
    while todo:
        schema, at = todo.pop()
        if id(schema) in seen:
            continue
        seen.add(id(schema))
        if isinstance(schema, dict) and "allOf" in schema and _n_patterns(schema, root) > _MAX_PATTERNS:
            raise ConstraintError(f"the JSON schema cannot be used: more than {_MAX_PATTERNS} patterns and formats in one allOf (at {at})")
        todo += [(part, path) for path, part in _parts(schema, at, root)]


def _n_patterns(schema: dict[str, Any], root: Any) -> int:
    """Patterns and formats that one text may have to match, counted up to where there are too many."""
    n, todo, seen = 0, [schema], {id(schema)}
    while todo and n <= _MAX_PATTERNS:
        one = todo.pop()
        n += sum(key in one for key in ("pattern", "format"))
        for path, part in _parts(one, "", root):
            same_text = path.startswith(("#", "/allOf/", "/anyOf/", "/oneOf/"))
            if same_text and isinstance(part, dict) and id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
    return n


def _cleaned(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if not _asks_nothing(key, value)}
    for key in _ONE:
        if isinstance(out.get(key), dict):
            out[key] = _cleaned(out[key])
    for key in _MANY:
        if isinstance(out.get(key), list):
            out[key] = [_cleaned(part) for part in out[key]]
    for key in _NAMED:
        if isinstance(out.get(key), dict):
            out[key] = {name: _cleaned(part) for name, part in out[key].items()}
    if isinstance(out.get("$ref"), str):
        out["$ref"] = quote(out["$ref"], safe="#/:?&=%~!$'()*+,;@-._")
    if isinstance(out.get("pattern"), str):
        pattern = out["pattern"]
        if pattern.startswith(_NOT_BARE) and isinstance(out.get("allOf", []), list):
            out["allOf"] = [*out.get("allOf", ()), {"pattern": "[^-+.]"}]
            pattern = "^" + pattern.removeprefix(_NOT_BARE)
        out["pattern"] = _rust_regex(pattern)
    if isinstance(out.get("patternProperties"), dict):
        out["patternProperties"] = {_rust_regex(name): part for name, part in out["patternProperties"].items()}
    return out


def _asks_nothing(key: str, value: Any) -> bool:
    if key == "format" and value in _OF_PROGRAMS:
        return True
    if key == "propertyNames" and value == {"type": "string"}:  # what every name is
        return True
    idle = _IDLE.get(key, _IDLE)  # itself: no value is
    return idle is ... or (type(value) is type(idle) and value == idle)


def _rust_regex(pattern: str) -> str:
    r"""ECMAScript's \uHHHH as the regular expressions of llguidance write it."""
    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", lambda m: rf"\x{{{m[1]}}}" if m[1] else m[0], pattern, flags=re.DOTALL)


def _parts(schema: Any, at: str, root: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that a schema is made of, with their places; definitions only where something refers to them."""
    if not isinstance(schema, dict):
        return
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#/"):
        target = root
        for name in unquote(ref[2:]).split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        yield ref, target
    for key in _ONE:
        if isinstance(schema.get(key), dict):
            yield f"{at}/{key}", schema[key]
    for key in _MANY:
        if isinstance(schema.get(key), list):
            yield from ((f"{at}/{key}/{i}", part) for i, part in enumerate(schema[key]))
    for key in _NAMED:
        if key not in _DEFINITIONS and isinstance(schema.get(key), dict):
            yield from ((f"{at}/{key}/{name}", part) for name, part in schema[key].items())
