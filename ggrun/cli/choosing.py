"""From flags, models.toml and /set to a `Sampling`: parsing and checking of what a person wrote. Chooses no token itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ggrun.cli.options import SamplingOptions
from ggrun.cli.prompt import unescaped
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun import Sampling

# what llama.cpp's flags call a field, where it has another name
FIELD_ALIASES = {"temp": "temperature", "typical": "typical_p", "mirostat_ent": "mirostat_tau", "mirostat_lr": "mirostat_eta"}


def sampling(options: SamplingOptions, named: Mapping[str, Any]) -> Sampling:
    """The flags over what models.toml says over the defaults."""
    return _seeded(given(options, named))


def given(options: SamplingOptions, named: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Sampling that flags or models.toml set; flags win."""
    values = {field.name: value for field in fields(options) if (value := getattr(options, field.name)) not in (None, [])}
    values["ignore_eos"] = options.ignore_eos or bool(named.get("ignore_eos"))
    return {**named, **checked(values, "")}


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """The sampling with one value set from text, as /set does. Raises GgrunError for an unknown name or a value that cannot be."""
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    return _seeded({**values, **checked({name: text}, "")})


def _seeded(values: dict[str, Any]) -> Sampling:
    """A random seed is drawn here, so that it can be told and used again."""
    from ggrun import Sampling

    if values.get("seed", -1) < 0:
        from random import SystemRandom

        values["seed"] = SystemRandom().randrange(1 << 32)
    return Sampling(**values)


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by field of Sampling, each of the field's type. Text is converted; `where` goes before the sentence of an error."""
    from ggrun import Sampling

    default = Sampling()
    prefix = f"{where} " if where else ""
    result: dict[str, Any] = {}
    for given, value in values.items():
        plain = given.removeprefix("--").replace("-", "_")
        name = FIELD_ALIASES.get(plain, plain)
        if not hasattr(default, name):
            known = ", ".join(field.name for field in fields(default))
            raise GgrunError(f"{prefix}{given} is no sampling value; known are {known}")
        try:
            result[name] = _READ[name](value) if name in _READ else _like(getattr(default, name), value)
        except (ValueError, TypeError, AttributeError) as error:
            raise GgrunError(f"{prefix}{given} cannot be {value!r}: {error}") from None
    try:
        valid = Sampling(**result)  # refuses what is out of range
    except GgrunError as error:
        raise GgrunError(f"{prefix}{error}") from None
    return {name: getattr(valid, name) for name in result}


def _like(default: Any, value: Any) -> Any:
    """value as the type of default; ValueError says what was expected."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        words = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
        if str(value).lower() not in words:
            raise ValueError("on or off is expected")
        return words[str(value).lower()]
    kind, expected = (int, "a whole number is expected") if isinstance(default, int) else (float, "a number is expected")
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise ValueError(expected)
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise ValueError(expected) from None


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """((15043, 1.5), (13, -inf)) from ["15043+1.5", "13-inf"]."""
    pairs = []
    for item in value.split() if isinstance(value, str) else value:
        if not (found := re.fullmatch(r"(\d+)([+-](?:inf|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+))", str(item).strip())):
            raise ValueError(f"{item!r} is not ID+X or ID-X, such as 15043+1.5")
        pairs.append((int(found[1]), float(found[2])))
    return tuple(pairs)


def _breakers(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(item, str) for item in items):
        raise ValueError("text is expected")
    return tuple(unescaped(item) for item in items)


_READ: dict[str, Callable[[Any], Any]] = {
    "samplers": lambda value: value,  # Sampling reads names, aliases and letters itself
    "logit_bias": _logit_bias,
    "dry_sequence_breakers": _breakers,
}
