"""Vocabularies for made-up models: copied from a GGUF file, or invented at a real family's size with its own special tokens.

Used by `make_model.py`. Knows tokenizer metadata; must not know shapes or weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggrun.errors import GgrunError
from ggrun.gguf import open_gguf

NORMAL, CONTROL, UNUSED = 1, 3, 5  # token types as GGUF numbers them

LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Specials:
    """The end of a family's vocabulary: how many normal tokens come first, and the special ones by their distance from there."""

    pre: str
    n_normal: int
    n_vocab: int
    names: Mapping[int, str]
    filler: tuple[str, int]
    ids: Mapping[str, int | bool]
    template: str


LLAMA_3 = Specials(
    pre="llama-bpe",
    n_normal=128000,
    n_vocab=128256,
    names={
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    },
    filler=("<|reserved_special_token_{}|>", CONTROL),
    ids={"bos_token_id": 128000, "eos_token_id": 128009, "padding_token_id": 128004, "add_bos_token": True},
    template=LLAMA_3_TEMPLATE,
)
QWEN_3 = Specials(
    pre="qwen2",
    n_normal=151643,
    n_vocab=151936,
    names={0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"},
    filler=("[PAD{}]", UNUSED),
    ids={"bos_token_id": 151643, "eos_token_id": 151645, "padding_token_id": 151643, "add_bos_token": False},
    template=CHATML_TEMPLATE,
)


def merged_tokens(count: int) -> tuple[list[str], list[str]]:
    """`count` tokens for byte-pair merging and their merges: every byte, then strings of 2, 3, 4 ... lower-case letters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + i) for i in range(256))  # GPT-2's stand-ins for bytes that do not print
    tokens = [chr(byte) if byte in printable else next(others) for byte in range(256)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges: list[str] = []
    stems = ["Ġ", *letters]  # Ġ is the space
    while len(tokens) < count:
        pairs = list(itertools.islice(itertools.product(stems, letters), count - len(tokens)))
        merges += [f"{stem} {letter}" for stem, letter in pairs]
        stems = [stem + letter for stem, letter in pairs]
        tokens += stems
    return tokens, merges


def made_up_vocabulary(specials: Specials) -> dict[str, Any]:
    """Tokenizer metadata of the real size: made-up words, the family's own special tokens at their own ids."""
    tokens, merges = merged_tokens(specials.n_normal)
    n_special = specials.n_vocab - specials.n_normal
    text, filler_type = specials.filler
    tokens += [specials.names.get(i) or text.format(specials.n_normal + i) for i in range(n_special)]
    types = [NORMAL] * specials.n_normal + [CONTROL if i in specials.names else filler_type for i in range(n_special)]
    fields = {"model": "gpt2", "pre": specials.pre, "tokens": tokens, "token_type": types, "merges": merges, **specials.ids}
    return {**{f"tokenizer.ggml.{key}": value for key, value in fields.items()}, "tokenizer.chat_template": specials.template}


def copied_vocabulary(path: str) -> dict[str, Any]:
    """The tokenizer metadata of a GGUF file, with a chat template for its special tokens when it has none."""
    with open_gguf(path) as file:
        fields: dict[str, Any] = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in fields:
        raise GgrunError(f"{path}: there is no vocabulary in it (no metadata key tokenizer.ggml.tokens)")
    known = set(fields["tokenizer.ggml.tokens"])
    for opening, template in (("<|im_start|>", CHATML_TEMPLATE), ("<|start_header_id|>", LLAMA_3_TEMPLATE)):
        if opening in known:
            fields.setdefault("tokenizer.chat_template", template)
    return fields
