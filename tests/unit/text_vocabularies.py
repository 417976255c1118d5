"""Small vocabularies as metadata, for tests of ggrun.text."""

from typing import Any

from ggrun.text.characters import BYTE_ALPHABET

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def gpt2(merges: list[str] = (), special: dict[str, int] | None = None, pre: str = "gpt-2", **more: Any) -> dict[str, Any]:  # type: ignore[assignment]
    """Every byte, what the merges spell, and special tokens (text -> type); more: further tokenizer.ggml. keys."""
    tokens = [*BYTE_ALPHABET]
    tokens += [joined for pair in merges if (joined := pair.replace(" ", "")) not in tokens]
    types = [NORMAL] * len(tokens)
    for text, type_ in (special or {}).items():
        tokens.append(text)
        types.append(type_)
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": list(merges)} | more
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def spm(pieces: dict[str, float], special: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """<unk>, <s>, </s>, every byte, pieces with their scores, special tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *(special or {})]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), *(special or {}).values()]
    scores = [0.0] * 259 + list(pieces.values()) + [0.0] * len(special or {})
    keys = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores} | more
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
