"""Text to token ids and back, as a GGUF's metadata says.

Knows which kind of vocabulary is encoded how, and special tokens around it; must not know models, prompts or templates.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ggrun.text.bpe import BytePairEncoder
from ggrun.text.characters import from_byte_alphabet, raw_bytes
from ggrun.text.decoder import IncrementalDecoder
from ggrun.text.error import TextError
from ggrun.text.pretokenizers import find_pretokenizer
from ggrun.text.special import SpecialMatcher, assign_roles
from ggrun.text.spm import SentencePieceEncoder
from ggrun.text.vocabulary import PREFIX, TokenType, Vocabulary, flag, name_of, read_vocabulary, strings
from ggrun.text.words import SPACE

_NOT_SHOWN = frozenset((TokenType.CONTROL, TokenType.UNKNOWN))
_AS_WRITTEN = frozenset((TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED))


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a kind of vocabulary turns ordinary text into ids, and token texts into bytes.

    add_space: text that follows a special token or the beginning gets a space before it. add_bos: the default of add_bos_token.
    """

    encode: Callable[[str], list[int]]
    spell: Callable[[str], bytes]
    add_space: bool = False
    add_bos: bool = False
    always_bos: bool = False


class Tokenizer:
    """Made by load_tokenizer. Ids are ints in [0, n_vocab).

    bos_id, eos_id, eot_id, eom_id, unk_id, sep_id, pad_id: int or None. special_ids: these and the fill-in-the-middle ones by name.
    end_of_generation: ids at which a model stops. add_bos, add_eos: what encode does with add_special.
    """

    def __init__(self, vocabulary: Vocabulary, ends: frozenset[int], spelling: Spelling, matcher: SpecialMatcher, add_eos: bool) -> None:
        self._vocabulary = vocabulary
        self._spelling = spelling
        self._matcher = matcher
        self._pieces: dict[int, bytes] = {}
        self.special_ids: Mapping[str, int] = vocabulary.special
        self.end_of_generation = ends
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.eot_id, self.eom_id, self.unk_id, self.sep_id, self.pad_id = map(
            vocabulary.special.get, ("bos", "eos", "eot", "eom", "unk", "sep", "pad")
        )
        self.add_bos = spelling.add_bos and self.bos_id is not None
        self.add_eos = add_eos and self.eos_id is not None

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`. add_special: with the first and last token the model wants; parse_special: "<|...|>" in it is a token."""
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates: pairs become their character, others U+FFFD
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        at_start = True
        for part in self._matcher.split(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
                at_start = True
            else:
                ids += self._spelling.encode(" " + part if at_start and self._spelling.add_space else part)
                at_start = False
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_part(self, text: str) -> list[int]:
        """The ids of text in the middle of other text: no control tokens, and no space put before it."""
        ids: list[int] = []
        for part in self._matcher.split(text, parse_special=False):
            ids += [part] if isinstance(part, int) else self._spelling.encode(part)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`, without the space that encoding put before it; incomplete characters are U+FFFD."""
        decoder = self.decoder(skip_special, strip_space=True)
        return "".join([decoder.push(id_) for id_ in ids]) + decoder.finish()

    def split_special(self, text: str) -> Sequence[str | int]:
        """The special tokens in a text, as ids, and the texts between them."""
        return self._matcher.split(text, parse_special=True)

    def decoder(self, skip_special: bool = True, strip_space: bool = False, shown: Container[int] = ()) -> IncrementalDecoder:
        """For one generation. strip_space: its first text begins an answer, so drop the space such vocabularies put there.

        shown: special tokens that are not skipped.
        """

        def some(id: int) -> bytes:
            return self.token_bytes(id) if id in shown else self._shown_bytes(id)

        piece = (some if shown else self._shown_bytes) if skip_special else self.token_bytes
        return IncrementalDecoder(piece, strip_space and self._spelling.add_space)

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for, special tokens as they are written; b"" for ids past the vocabulary (padded outputs)."""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._spell(id)
        return piece

    def token_text(self, id: int) -> str:
        """The token as the vocabulary writes it. TextError outside of it."""
        if not 0 <= id < self.n_vocab:
            raise TextError(f"token {id} is outside the vocabulary of {self.n_vocab} tokens")
        return self._vocabulary.tokens[id]

    def token_id(self, text: str) -> int | None:
        """The id of the token written `text`."""
        return self._vocabulary.ids.get(text)

    def is_special(self, id: int) -> bool:
        """Whether the token is a control or unknown token, which is not shown."""
        return 0 <= id < self.n_vocab and self._vocabulary.types[id] in _NOT_SHOWN

    def _shown_bytes(self, id: int) -> bytes:
        return b"" if self.is_special(id) else self.token_bytes(id)

    def _spell(self, id: int) -> bytes:
        if id >= self.n_vocab:
            return b""
        text, type_ = self.token_text(id), self._vocabulary.types[id]
        if type_ in _AS_WRITTEN:
            return raw_bytes(text)
        if type_ == TokenType.BYTE and (byte := _byte_of(text)) is not None:
            return byte
        return self._spelling.spell(text) if type_ in (TokenType.NORMAL, TokenType.BYTE) else b""


def load_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a GGUF file. TextError, naming the key, for what is missing, damaged or not supported."""
    model = name_of(metadata, PREFIX + "model")
    if model not in _MODELS:
        if not model:
            raise TextError(f"the file has no {PREFIX}model: it carries no vocabulary, so ggrun can neither read nor write text with it")
        raise TextError(f"{PREFIX}model is {model!r}, which ggrun does not know. Known: {', '.join(sorted(_MODELS))}")
    defaults, make = _MODELS[model]
    vocabulary = read_vocabulary(metadata, defaults)
    if not vocabulary.typed:
        _guess_types(vocabulary)
    ends = assign_roles(vocabulary)
    spelling = make(metadata, vocabulary)
    spelling = replace(
        spelling,
        add_space=flag(metadata, "add_space_prefix", spelling.add_space),
        add_bos=flag(metadata, "add_bos_token", spelling.add_bos) or spelling.always_bos,
    )
    matcher = SpecialMatcher(vocabulary, _stripping(metadata, vocabulary))
    return Tokenizer(vocabulary, ends, spelling, matcher, flag(metadata, "add_eos_token", False))


def _sentence_piece(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Spelling:
    return Spelling(SentencePieceEncoder(vocabulary).encode, _spell_spaces, add_space=True, add_bos=True)


def _byte_pair(metadata: Mapping[str, object], vocabulary: Vocabulary, pre: str = "") -> Spelling:
    pre = pre or name_of(metadata, PREFIX + "pre") or "default"
    rule = find_pretokenizer(pre)
    merges = [] if pre == "kimi-k2" and PREFIX + "merges" not in metadata else strings(metadata, PREFIX + "merges")
    encoder = BytePairEncoder(vocabulary, merges, rule)
    return Spelling(
        encoder.encode, from_byte_alphabet if rule.byte_level else _spell_spaces, add_bos=rule.add_bos, always_bos=rule.always_bos
    )


def _gemma4(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Spelling:
    return _byte_pair(metadata, vocabulary, "gemma4")


# tokenizer.ggml.model -> special ids where the file names none, and how its text is spelled
_MODELS: dict[str, tuple[Mapping[str, int], Callable[[Mapping[str, object], Vocabulary], Spelling]]] = {
    "llama": ({"bos": 1, "eos": 2, "unk": 0}, _sentence_piece),
    "gpt2": ({}, _byte_pair),
    "gemma4": ({}, _gemma4),
}


def _spell_spaces(text: str) -> bytes:
    return raw_bytes(text.replace(SPACE, " "))


def _byte_of(text: str) -> bytes | None:
    """The byte of a token written <0xNN>."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes.fromhex(text[3:5])
        except ValueError:
            pass
    return None


def _guess_types(vocabulary: Vocabulary) -> None:
    """For files without token types: byte tokens by their text, special ids as control tokens."""
    for id_, text in enumerate(vocabulary.tokens):
        if _byte_of(text) is not None:
            vocabulary.types[id_] = TokenType.BYTE
    for id_ in vocabulary.special.values():
        vocabulary.types[id_] = TokenType.CONTROL


def _stripping(metadata: Mapping[str, object], vocabulary: Vocabulary) -> frozenset[int]:
    """Special tokens that swallow the white space after them: those of the Phi-3 family, which nothing but its name tells."""
    name = metadata.get("general.name")
    if not isinstance(name, str) or not any(family in name.lower() for family in ("phi-3", "phi3")):
        return frozenset()
    kept = ("<unk>", "<s>", "<|endoftext|>")
    special = {id_ for id_, type_ in enumerate(vocabulary.types) if type_ in _AS_WRITTEN and vocabulary.tokens[id_] not in kept}
    return frozenset(special | ({vocabulary.ids["</s>"]} if "</s>" in vocabulary.ids else set()))
