"""POST /v1/completions: OpenAI's older API, which continues texts, with llama.cpp's additions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server import fields, relay
from ggrun.server.answering import Whole
from ggrun.server.body import read
from ggrun.server.choices import Answer
from ggrun.server.errors import ApiError
from ggrun.server.logprobs import prompt_logs
from ggrun.server.openai_chat import DONE, MOST_CHOICES, MOST_LOGPROBS, StreamOptions
from ggrun.server.openai_shapes import added, echo_logs, head, joined_logs, text_logs, usage
from ggrun.server.operation import operation
from ggrun.server.streaming import event
from ggrun.server.task import End, Task, Text, TokenLog

MOST_PROMPTS: Final = 256


class CompletionRequest(fields.LlamaFields, kw_only=True):
    """Texts, or token ids, to be continued."""

    prompt: str | list[str | int | list[int]]
    model: str | None = None
    suffix: str | None = None
    echo: bool | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    stop: fields.Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # without meaning here
    user: str | None = None


@operation("Continue a text (OpenAI)", request=CompletionRequest, answer="a text completion; with `stream` server-sent events")
async def completions(request: Request) -> Response:
    """OpenAI's completions.create."""
    asked = await read(request, CompletionRequest)
    tasks = tasks_of(asked)
    if not asked.stream:
        return await relay.whole(request, asked.model, tasks, partial(_whole, asked))
    return relay.stream(request, asked.model, tasks, partial(_frames, asked))


def tasks_of(asked: CompletionRequest) -> list[Task]:
    """A task for each prompt. ApiError, with the field's path, for what is wrong or not supported."""
    fields.refuse(asked)
    n = fields.between("n", asked.n, 1, MOST_CHOICES) or 1
    if asked.best_of not in (None, 1, n):
        raise ApiError(400, "best_of is not supported: all answers are returned; use n", code="unsupported_parameter", param="best_of")
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options are for streams; send stream: true, too", param="stream_options")
    if asked.echo and asked.suffix:
        raise ApiError(400, "echo cannot be combined with suffix", param="echo")
    fields.between("logprobs", asked.logprobs, 0, MOST_LOGPROBS)
    fields.between("n_probs", asked.n_probs, 0, MOST_LOGPROBS)
    logs = _logged(asked)
    if asked.echo and logs and asked.truncate:
        raise ApiError(400, "echo with logprobs tells all of the prompt; it cannot be combined with truncate", param="truncate")
    found = prompts(asked.prompt)
    if len(found) * n > MOST_PROMPTS:
        raise ApiError(400, f"{len(found)} prompts with {n} answers each are more than {MOST_PROMPTS} at once", param="prompt")
    task = Task(
        suffix=asked.suffix or None,
        output=fields.grammar_of(asked),
        sampling=fields.sampling_fields(asked),
        n_predict=fields.limit(asked, "max_tokens", "n_predict"),
        stop=fields.stop_words(asked.stop),
        n=n,
        n_top=max(asked.logprobs or 0, asked.n_probs or 0) if logs else -1,
        prompt_logs=logs and bool(asked.echo),
        truncate=bool(asked.truncate),
        shift=asked.context_shift,
        keep=asked.n_keep or 0,
        cache_prompt=asked.cache_prompt,
    )
    return [replace(task, prompt=prompt) for prompt in found]


def prompts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts of OpenAI's forms: a text, texts, token ids, or lists of them."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise ApiError(400, "prompt is empty: there is nothing to continue", param="prompt")
    ids = [part for part in given if isinstance(part, int)]
    if len(ids) == len(given):
        return [ids]
    if ids:
        raise ApiError(400, "a prompt is a text, token ids, or a list of either; texts and ids cannot be mixed here", param="prompt")
    return [part for part in given if not isinstance(part, int)]


def _whole(asked: CompletionRequest, answer: Answer, wholes: Sequence[Whole]) -> dict[str, Any]:
    ends = [whole.end for whole in wholes if whole.end]
    choices = []
    for index, (whole, end) in enumerate(zip(wholes, ends, strict=True)):
        own = {"timings": end.timings} if len(ends) > 1 else {}
        echo = _echo(asked, answer, index)
        logs = joined_logs(_echo_logs(asked, answer, index, echo), _logs(asked, whole.tokens, len(echo)))
        choices.append({"index": index, "text": echo + whole.text, "logprobs": logs, "finish_reason": end.reason, **own})
    body = head(answer, relay.new_id("cmpl-"), "text_completion", int(time.time()))
    return {**body, "choices": choices, "usage": usage(ends, asked.n or 1), **added(ends)}


async def _frames(asked: CompletionRequest, answer: Answer) -> AsyncGenerator[bytes, None]:
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    start = head(answer, relay.new_id("cmpl-"), "text_completion", int(time.time()))
    offsets = [0] * len(answer.choices)
    ends: dict[int, End] = {}

    def frame(index: int, text: str, logs: Any = None, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logs, "finish_reason": reason}
        live = {"timings": answer.timings(index)} if asked.timings_per_token else {}
        return event(msgspec.json.encode({**start, "choices": [choice], **({"usage": None} if with_usage else {}), **live, **more}))

    def echoed(index: int) -> bytes:
        untold.discard(index)
        text = _echo(asked, answer, index)
        offsets[index] = len(text)
        return frame(index, text, _echo_logs(asked, answer, index, text))

    untold = set(range(len(answer.choices)) if asked.echo else ())
    if not _logged(asked):
        for index in sorted(untold):
            yield echoed(index)
    async for piece in relay.watched(answer, bool(asked.return_progress)):
        if piece.choice in untold and isinstance(piece, (Text, End)):  # before that, its prompt is still being computed
            yield echoed(piece.choice)
        match piece:
            case Text(choice=index, text=text, tokens=tokens) if text or tokens:
                yield frame(index, text, _logs(asked, tokens, offsets[index]))
                offsets[index] += len(text)
            case End(choice=index):
                ends[index] = piece
                yield frame(index, "", None, piece.reason, **added([piece]))
            case relay.PromptProgress(choice=index):
                yield frame(index, "", prompt_progress=piece.shown())
    if with_usage:
        told = [end for _, end in sorted(ends.items())]
        yield event(msgspec.json.encode({**start, "choices": [], "usage": usage(told, asked.n or 1), **added(told)}))
    yield DONE


def _logs(asked: CompletionRequest, tokens: Sequence[TokenLog], offset: int) -> dict[str, Any] | None:
    return text_logs(tokens, offset) if _logged(asked) else None


def _echo_logs(asked: CompletionRequest, answer: Answer, index: int, echo: str) -> dict[str, Any] | None:
    """Of a prompt's tokens, where both are asked for. echo: the prompt as it is repeated."""
    if not asked.echo or not _logged(asked):
        return None
    n_top = max(asked.logprobs or 0, asked.n_probs or 0)
    return echo_logs(prompt_logs(answer.model.engine.tokenizer, answer.generation(index), n_top), echo)


def _logged(asked: CompletionRequest) -> bool:
    return asked.logprobs is not None or bool(asked.n_probs)


def _echo(asked: CompletionRequest, answer: Answer, index: int) -> str:
    """The prompt of a choice, where it is to be repeated."""
    if not asked.echo:
        return ""
    prompt = prompts(asked.prompt)[index // (asked.n or 1)]
    return prompt if isinstance(prompt, str) else answer.model.engine.tokenizer.decode(prompt, skip_special=False)


ROUTES: Final = [Route("/v1/completions", completions, methods=["POST"])]
