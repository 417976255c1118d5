"""What a request asks of a model, whatever API it was written for, and the pieces its answer comes in.

Every API turns its requests into a Task and its answers out of Pieces; `answering` does what lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls"]
CallState = Literal["open", "done", "broken"]
OutputKind = Literal["json_object", "json_schema", "regex", "grammar", "lark"]


@dataclass(frozen=True, slots=True)
class Output:
    """The form an answer must have: a JSON schema (dict; of json_object none), or the text of a regex, a GBNF or a Lark grammar."""

    kind: OutputKind
    value: Any = None
    param: str = "response_format"  # the request's field, for errors


@dataclass(frozen=True, slots=True)
class Task:
    """One request. Either messages (and tools) for the model's chat template, or a prompt that is continued as it is, or prompt_ids.

    prompt: text, or texts and token ids in a row. For a gap in a text (fill-in-the-middle): suffix, which the answer leads to; extra,
    files shown before both, as (name, text); begun, text the answer goes on from; gap, the request's field, for errors.
    tools: OpenAI's function tools. tool_choice: a word, or the name of the function that must be called. prefill: the last message is
    the assistant's, to be continued. template: more variables for the template. sampling: fields of `ggrun.Sampling` the request sets;
    what it does not set has the model's or the server's default. n_predict: -1 for no limit, None for the default. n_top: likeliest tokens
    to report beside each (-1: no log probabilities at all). prompt_logs: of the prompt's tokens, too. reasoning: whether thinking is told
    apart from the answer. truncate: drop the prompt's middle rather than refuse it. shift: drop the context's older half when it is full.
    special: show special tokens, too. thought_limit: tokens it may think; -1: any number; last_thought: what is written where
    they are up. thought_limit, reasoning, shift and cache_prompt None: the
    server's default.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | Sequence[str | int] | None = None
    suffix: str | None = None
    extra: Sequence[tuple[str, str]] = ()
    begun: str = ""
    gap: str = "suffix"
    prompt_ids: Sequence[int] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Literal["auto", "none", "required"] | str = "auto"
    parallel_tool_calls: bool = True
    output: Output | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    n_predict: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    n_top: int = -1
    prompt_logs: bool = False
    reasoning: bool | None = None
    thought_limit: int | None = None
    last_thought: str = ""
    truncate: bool = False
    shift: bool | None = None
    special: bool = False
    prefill: bool = False
    keep: int = 0
    cache_prompt: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenLog:
    """A token as log probabilities report it; top: the likeliest ones at its place, itself among them if it is."""

    id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLog, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """More of a choice's answer."""

    choice: int
    text: str
    tokens: tuple[TokenLog, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """More of its reasoning."""

    choice: int
    text: str
    tokens: tuple[TokenLog, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """More of one of its tool calls: the first piece of a call has its id and name; arguments: more of the JSON text.

    state "done": the call is whole and its arguments are a JSON object. "broken": it turned out to be none, and all of it follows as text.
    """

    choice: int
    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""
    state: CallState = "open"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of them found in the cache, of the answer, of them thought."""

    prompt: int
    cached: int
    answer: int
    thought: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The last piece of a choice. n_dropped: tokens left out because the context was full. timings: under llama.cpp's names."""

    choice: int
    reason: FinishReason
    usage: Usage
    timings: Mapping[str, float | int]
    stop_word: str | None = None
    n_dropped: int = 0
    seed: int = 0


Piece = Text | Thought | Call | End
