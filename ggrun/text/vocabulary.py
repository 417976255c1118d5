"""A vocabulary as a GGUF's metadata lists it: texts, scores, types and special ids, checked before anything relies on them.

Knows the `tokenizer.ggml.*` keys; must not know how text is cut or merged. Hostile metadata ends in a TextError that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import ne
from typing import Any, Final

from ggrun.text.error import TextError

PREFIX: Final = "tokenizer.ggml."
MAX_TOKENS: Final = 1 << 24


class TokenType(IntEnum):
    """Numbers as in tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# name in SpecialIds -> keys under tokenizer.ggml., the older ones last
SPECIAL_KEYS: Final = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}


@dataclass(slots=True)
class Vocabulary:
    """tokens: text by id, never empty. scores: one float per token or empty. types: one TokenType per token (as int).

    ids: the reverse of tokens, the lowest id winning. special: name of SPECIAL_KEYS -> id, only those that the file or a default names.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    special: dict[str, int]
    typed: bool
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        last = len(self.tokens) - 1
        self.ids = dict(zip(reversed(self.tokens), range(last, -1, -1)))


def read_vocabulary(metadata: Mapping[str, object], defaults: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a file. `defaults`: special ids where the file names none, dropped when outside the vocabulary."""
    tokens = string_list(metadata, PREFIX + "tokens")
    if not tokens:
        raise TextError(f"{PREFIX}tokens is empty: the file has no vocabulary")
    n = len(tokens)
    if "" in tokens:
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    scores = _numbers(metadata, PREFIX + "scores", n)
    types = _numbers(metadata, PREFIX + "token_type", n)
    typed = bool(types)
    known = frozenset(TokenType)
    if not typed:
        types = [TokenType.NORMAL] * n
    elif not known.issuperset(types):
        types = [type_ if type_ in known else TokenType.UNDEFINED for type_ in types]
    special = {name: id_ for name, id_ in defaults.items() if id_ < n}
    for name, keys in SPECIAL_KEYS.items():
        for key in reversed(keys):
            if (id_ := _special_id(metadata, PREFIX + key, n)) is not None:
                special[name] = id_
    return Vocabulary(tokens, scores, types, special, typed)


def strings(metadata: Mapping[str, object], key: str) -> Sequence[str]:
    """`string_list`, but an array that a file holds packed stays there."""
    value = metadata.get(key)
    if getattr(value, "element_type", None) == "string" and isinstance(value, Sequence) and len(value) <= MAX_TOKENS:
        return value
    return string_list(metadata, key)


def string_list(metadata: Mapping[str, object], key: str) -> list[str]:
    """The array of strings at `key`. TextError when it is missing or anything else."""
    values = _list(metadata, key)
    if values is None:
        raise TextError(f"the file has no {key}: it carries no vocabulary that ggrun could use")
    if not set(map(type, values)) <= {str}:
        raise TextError(f"{key} must be an array of strings")
    return values


def flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    """The bool at tokenizer.ggml.`name`."""
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, bool):
        raise TextError(f"{PREFIX}{name} must be true or false, the file has {value!r:.60}")
    return value


def name_of(metadata: Mapping[str, object], key: str) -> str:
    """The string at `key`, "" when there is none."""
    value = metadata.get(key, "")
    if not isinstance(value, str):
        raise TextError(f"{key} must be a string, the file has {value!r:.60}")
    return value


def _list(metadata: Mapping[str, object], key: str) -> list[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TextError(f"{key} must be an array, the file has {value!r:.60}")
    if len(value) > MAX_TOKENS:
        raise TextError(f"{key} has {len(value)} entries; ggrun reads up to {MAX_TOKENS}")
    tolist = getattr(value, "tolist", None)
    return tolist() if tolist else list(value)


def _numbers(metadata: Mapping[str, object], key: str, n: int) -> list[Any]:
    values = _list(metadata, key)
    if values is None:
        return []
    if len(values) < n:
        raise TextError(f"{key} has {len(values)} entries, fewer than the {n} tokens")
    if not set(map(type, values)) <= {int, float}:
        raise TextError(f"{key} must be an array of numbers")
    if any(map(ne, values, values)):
        raise TextError(f"{key} contains a value that is not a number (NaN)")
    return values[:n]


def _special_id(metadata: Mapping[str, object], key: str, n: int) -> int | None:
    value = metadata.get(key)
    if value is None or value == 0xFFFFFFFF or value == -1:  # what converters write for "none"
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n:
        raise TextError(f"{key} is {value!r:.60}, which is no id of a vocabulary of {n} tokens")
    return value
