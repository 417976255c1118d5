"""Tokens that are more than text: which end a generation, which must be matched before any merging, and the matching itself.

Knows token texts that public models give a meaning, since files often forget to; must not know how ordinary text is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ggrun.text.characters import raw_bytes
from ggrun.text.vocabulary import TokenType, Vocabulary

_MATCHED: Final = frozenset((TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN))
_ONLY_PARSED: Final = frozenset((TokenType.CONTROL, TokenType.UNKNOWN))
_ASCII_SPACE: Final = " \t\n\v\f\r"

# Texts that name a role when the metadata does not. The first one in order of id takes the role.
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "eot": ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
            "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
    "eom": ("<|eom_id|>",),
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
ENDS: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
ENDING_ROLES: Final = ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")
SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # part of what gpt-oss says
# (these all end a generation) -> (this one then does not, and has this type)
NOT_AN_END: Final = (
    (("<|return|>", "<|call|>"), "<|end|>", TokenType.USER_DEFINED),
    (("<|return|>", "<|calls|>"), "<|end|>", TokenType.USER_DEFINED),
    (("<|call|>", "<|flush|>"), "<|end|>", TokenType.USER_DEFINED),
    (("<|calls|>", "<|flush|>"), "<|end|>", TokenType.USER_DEFINED),
    (("<|tool_response>",), "</s>", TokenType.NORMAL),
)


def assign_roles(vocabulary: Vocabulary) -> frozenset[int]:
    """Completes `vocabulary.special` and corrects `vocabulary.types` by the tables above; returns the ids that end a generation."""
    ids, types, special = vocabulary.ids, vocabulary.types, vocabulary.special
    for role, texts in ROLES.items():
        found = sorted(ids[text] for text in texts if text in ids)
        if role not in special and found:
            special[role] = found[0]
            types[found[0]] = TokenType.CONTROL
    ends = {special[role] for role in ENDING_ROLES if role in special}
    for text in ENDS:
        if text in ids:
            ends.add(ids[text])
            types[ids[text]] = TokenType.CONTROL
    for text in SHOWN:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    for present, text, type_ in NOT_AN_END:
        if text in ids and ids[text] in ends and all(ids.get(other) in ends for other in present):
            ends.discard(ids[text])
            types[ids[text]] = type_
    return frozenset(ends)


@dataclass(frozen=True, slots=True)
class _Special:
    id: int
    text: str
    strip_after: bool


class SpecialMatcher:
    """Cuts special tokens out of a text: longer ones first, each everywhere, whatever it overlaps."""

    def __init__(self, vocabulary: Vocabulary, strip_after: frozenset[int] = frozenset()) -> None:
        types, tokens = vocabulary.types, vocabulary.tokens
        matched = [i for i, type_ in enumerate(types) if type_ in _MATCHED]
        matched.sort(key=lambda i: -len(raw_bytes(tokens[i])))
        specials = [_Special(i, tokens[i], i in strip_after) for i in matched]
        # By their first characters, so that thousands of reserved tokens cost one search.
        self._by_head = {True: _by_head(specials), False: _by_head([s for s in specials if types[s.id] not in _ONLY_PARSED])}
        self._order = {special: i for i, special in enumerate(specials)}

    def split(self, text: str, parse_special: bool) -> Sequence[str | int]:
        """Texts (never empty) and token ids in order. Tokens of control and unknown type are matched only with parse_special."""
        present = [
            special
            for head, specials in self._by_head[parse_special].items()
            if head in text
            for special in specials
            if special.text in text
        ]
        if not present:
            return [text] if text else []
        parts: list[str | int] = [text]
        for special in sorted(present, key=self._order.__getitem__):
            found: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or special.text not in part:
                    found.append(part)
                    continue
                for i, piece in enumerate(part.split(special.text)):
                    if i:
                        found.append(special.id)
                        piece = piece.lstrip(_ASCII_SPACE) if special.strip_after else piece
                    if piece:
                        found.append(piece)
            parts = found
        return parts


def _by_head(specials: Sequence[_Special], length: int = 4) -> dict[str, list[_Special]]:
    heads: dict[str, list[_Special]] = {}
    for special in specials:
        heads.setdefault(special.text[:length], []).append(special)
    return heads
