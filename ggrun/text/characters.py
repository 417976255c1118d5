"""Characters as tokenizers see them: their coarse category, and the printable alphabet that stands for raw bytes.

Knows Unicode only; must not know any vocabulary.

Split rules are written against a *collapsed* text, which has the length of the original: every character outside ASCII is replaced by
one of the marks below, so that plain `re` classes can express \\p{L} and the like. ASCII is left alone.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from typing import Final

from ggrun.text.unicode_ranges import UNICODE_15_1

WHITESPACE: Final = "\x0b"
OTHER, NUMBER, LETTER, PUNCTUATION, MARK, SYMBOL, HAN, HAN_SIGN = "\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7"

# Members of each category in collapsed text, for use inside [...].
CLASSES: Final = {
    r"\p{N}": "0-9" + NUMBER,
    r"\p{L}": "A-Za-z" + LETTER,
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}" + PUNCTUATION,
    r"\p{M}": MARK,
    r"\p{S}": r"$+<=>\^`|~" + SYMBOL,
}

_MARKS: Final = {"N": NUMBER, "L": LETTER, "P": PUNCTUATION, "M": MARK, "S": SYMBOL}
_STARTS: Final = [first for first, _, _ in UNICODE_15_1]
_SPACES: Final = frozenset("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}
_HAN_RANGES: Final = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2CEB0, 0x2EBEF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def category(character: str) -> str:
    """First letter of the character's general category in Unicode 15.1; "C" when unassigned."""
    code = ord(character)
    i = bisect_right(_STARTS, code) - 1
    if i >= 0 and code <= UNICODE_15_1[i][1]:
        return UNICODE_15_1[i][2]
    return unicodedata.category(character)[0]


class _Table(dict[int, str]):
    """A table for str.translate that computes an entry when it is first met."""

    def __missing__(self, code: int) -> str:
        mark = self[code] = chr(code) if code < 128 else self.mark(chr(code))
        return mark

    def mark(self, character: str) -> str:
        return WHITESPACE if character in _SPACES else _MARKS.get(category(character), OTHER)


class _HanTable(_Table):
    def mark(self, character: str) -> str:
        mark = super().mark(character)
        if not any(first <= ord(character) <= last for first, last in _HAN_RANGES):
            return mark
        return HAN if mark == LETTER else HAN_SIGN


class _SpacesTable(_Table):
    def mark(self, character: str) -> str:
        return WHITESPACE if character in _SPACES else character


_COLLAPSED, _COLLAPSED_HAN, _SPACED = _Table(), _HanTable(), _SpacesTable()


def collapse(text: str) -> str:
    """`text` with every character outside ASCII replaced by the mark of its category."""
    return text if text.isascii() else text.translate(_COLLAPSED)


def collapse_han(text: str) -> str:
    """As `collapse`, with Chinese letters, and whatever else lies in their blocks, told apart."""
    return text if text.isascii() else text.translate(_COLLAPSED_HAN)


def plain_spaces(text: str) -> str:
    """`text` with every white space outside ASCII replaced by WHITESPACE."""
    return text if text.isascii() else text.translate(_SPACED)


def _byte_alphabet() -> tuple[str, ...]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return tuple(chr(codes[byte]) for byte in range(256))


BYTE_ALPHABET: Final = _byte_alphabet()  # byte -> the printable character that stands for it in GPT-2 style vocabularies
_TO_ALPHABET: Final = dict(enumerate(BYTE_ALPHABET))
_FROM_ALPHABET: Final = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}


def to_byte_alphabet(text: str) -> str:
    """The UTF-8 bytes of `text`, each as its character of BYTE_ALPHABET."""
    return text.encode().decode("latin-1").translate(_TO_ALPHABET)


def from_byte_alphabet(text: str) -> bytes:
    """The bytes that `text` stands for; characters outside the alphabet stand for themselves, lone surrogates for the byte they escape."""
    from_alphabet = _FROM_ALPHABET
    try:
        return bytes([from_alphabet[character] for character in text])
    except KeyError:
        return b"".join(bytes((from_alphabet[c],)) if c in from_alphabet else raw_bytes(c) for c in text)


def raw_bytes(text: str) -> bytes:
    """UTF-8, with a lone surrogate as the byte it stands for (how metadata keeps text that is no UTF-8)."""
    return text.encode("utf-8", "surrogateescape")
