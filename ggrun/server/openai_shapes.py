"""What OpenAI's answers are made of, whole or in chunks: usage, log probabilities, and what llama.cpp adds to them.

Knows pieces of answers; must not know requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ggrun import __version__
from ggrun.server.task import End, TokenLog

if TYPE_CHECKING:
    from ggrun.server.choices import Answer

FINGERPRINT: Final = f"ggrun-{__version__}"


def usage(ends: Sequence[End], n_each: int) -> dict[str, Any]:
    """The tokens of a request. ends: of all choices; n_each: choices of each prompt, which is counted once."""
    firsts = ends[::n_each]
    prompt, answer = sum(end.usage.prompt for end in firsts), sum(end.usage.answer for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(end.usage.cached for end in firsts), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(end.usage.thought for end in ends),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def added(ends: Sequence[End]) -> dict[str, Any]:
    """Beyond OpenAI's: timings, of one choice, and whether tokens were left out because the context was full."""
    n_dropped = sum(end.n_dropped for end in ends)
    dropped = {"truncated": True, "dropped_tokens": n_dropped} if n_dropped else {}
    return {**({"timings": ends[0].timings} if len(ends) == 1 else {}), **dropped}


def head(answer: Answer, id_: str, kind: str, created: int) -> dict[str, Any]:
    """The fields every answer and every chunk of it begins with."""
    return {"id": id_, "object": kind, "created": created, "model": answer.model.name, "system_fingerprint": FINGERPRINT}


def chat_logs(tokens: Iterable[TokenLog]) -> dict[str, Any]:
    """Log probabilities as chat answers have them."""
    return {"content": [{**_log(token), "top_logprobs": [_log(other) for other in token.top]} for token in tokens], "refusal": None}


def text_logs(tokens: Sequence[TokenLog], offset: int) -> dict[str, Any]:
    """Log probabilities as text completions have them. offset: characters before the first token."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_text(token.top) for token in tokens],
        "text_offset": offsets,
    }


def echo_logs(tokens: Sequence[TokenLog], text: str) -> dict[str, Any]:
    """A prompt's, of which the first token has none. text: the prompt as it is repeated, which some tokens are no part of."""
    logs = text_logs(tokens, 0)
    logs["token_logprobs"][0] = logs["top_logprobs"][0] = None
    written = text.encode()
    at = n_chars = 0
    for i, token in enumerate(tokens):
        shown = token.bytes if written.startswith(token.bytes, at) else token.bytes.removeprefix(b" ")
        within = at < len(written) and written[at] & 0xC0 == 0x80  # of the character that begins in an earlier token
        logs["text_offset"][i] = n_chars - within
        if written.startswith(shown, at):
            n_chars += sum(byte & 0xC0 != 0x80 for byte in shown)
            at += len(shown)
    return logs


def joined_logs(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Log probabilities of tokens and of those that follow them."""
    return {name: [*first[name], *second[name]] for name in first} if first and second else first or second


def native_logs(tokens: Iterable[TokenLog]) -> list[dict[str, Any]]:
    """Log probabilities as llama.cpp writes them: with ids."""
    return [{"id": t.id, **_log(t), "top_logprobs": [{"id": other.id, **_log(other)} for other in t.top]} for t in tokens]


def _log(token: TokenLog) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def _by_text(top: Iterable[TokenLog]) -> Mapping[str, float]:
    """Of tokens with one text the likeliest, which comes first."""
    found: dict[str, float] = {}
    for token in top:
        found.setdefault(token.text, token.logprob)
    return found
