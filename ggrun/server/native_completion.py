"""POST /completion and /infill: llama.cpp's own way to continue a text or to fill a gap in one, and the shape of its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
from ggrun.server.openai_chat import MOST_CHOICES, MOST_LOGPROBS
from ggrun.server.openai_completions import MOST_PROMPTS
from ggrun.server.openai_shapes import native_logs
from ggrun.server.operation import operation
from ggrun.server.streaming import event
from ggrun.server.task import End, Task, Text, TokenLog

Prompt = str | list[str | int]


class NativeRequest(fields.LlamaFields, kw_only=True):
    """llama.cpp's completion. prompt: text, token ids, both in a row, an object with prompt_string, or a list of these."""

    prompt: str | dict[str, Any] | list[str | int | list[str | int] | dict[str, Any]] | None = None
    model: str | None = None
    stream: bool | None = None
    stop: fields.Stop = None
    max_tokens: int | None = None
    n: int | None = None
    n_cmpl: int | None = None
    image_data: list[Any] | None = None
    response_fields: list[str] | None = None
    special: bool | None = None


REFUSED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "image_data": (lambda value: not value, "this server reads text only"),
}


class Extra(msgspec.Struct):
    """A file shown before the text with the gap."""

    text: str
    filename: str = "tmp"


class InfillRequest(NativeRequest, kw_only=True):
    """A text with a gap. prompt: what stands at the end of input_prefix, too."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: list[Extra] | None = None


@operation("Continue a text (llama.cpp)", request=NativeRequest, answer="the answer, a list of them for several prompts, or a stream")
async def completion(request: Request) -> Response:
    """llama.cpp's POST /completion."""
    asked = await read(request, NativeRequest)
    if asked.prompt is None:
        raise ApiError(400, "prompt: this field is required", param="prompt")
    found = prompts(asked.prompt)
    return await _answered(request, asked, [replace(_task(asked), prompt=prompt) for prompt in found], _is_many(asked.prompt))


@operation("Fill the gap in a text (llama.cpp)", request=InfillRequest, answer="the answer or a stream, as of /completion")
async def infill(request: Request) -> Response:
    """llama.cpp's POST /infill, for models whose vocabulary has the tokens."""
    asked = await read(request, InfillRequest)
    if not isinstance(asked.prompt, str | None):
        raise ApiError(400, "prompt must be text here", param="prompt")
    extra = tuple((item.filename, item.text) for item in asked.input_extra or ())
    task = replace(_task(asked), prompt=asked.input_prefix or "", suffix=asked.input_suffix or "", gap="input_suffix", extra=extra)
    task = replace(task, begun=asked.prompt or "")
    return await _answered(request, asked, [task], False)


def prompts(given: Any) -> list[Prompt]:
    """The prompts of llama.cpp's forms. ApiError for none, and for images and sound."""
    if isinstance(given, list):
        if not given:
            raise ApiError(400, "prompt is empty: there is nothing to continue", param="prompt")
        return [_one(part, f"prompt[{i}]") for i, part in enumerate(given)] if _is_many(given) else [given]
    return [_one(given, "prompt")]


def _is_many(given: Any) -> bool:
    """Whether a list holds prompts, rather than the parts of one: it does unless there is an id in it."""
    return isinstance(given, list) and not any(isinstance(part, int) for part in given)


def _one(given: Any, path: str) -> Prompt:
    if not isinstance(given, dict):
        return given  # type: ignore[no-any-return]  # the struct's type has checked it
    if given.get("multimodal_data"):
        raise ApiError(400, "images and sound are not supported: this server reads text only", param=f"{path}.multimodal_data")
    text = given.get("prompt_string")
    if not isinstance(text, str):
        raise ApiError(400, "a prompt that is an object needs a prompt_string", param=f"{path}.prompt_string")
    return text


def _task(asked: NativeRequest) -> Task:
    fields.refuse(asked, {**fields.REFUSED, **REFUSED})
    fields.between("n_probs", asked.n_probs, 0, MOST_LOGPROBS * 5)
    n = fields.between("n_cmpl", asked.n_cmpl, 1, MOST_CHOICES) or fields.between("n", asked.n, 1, MOST_CHOICES) or 1
    return Task(
        output=fields.grammar_of(asked),
        sampling=fields.sampling_fields(asked),
        n_predict=fields.limit(asked, "n_predict", "max_tokens"),
        stop=fields.stop_words(asked.stop),
        n=n,
        n_top=asked.n_probs or 0 if asked.n_probs or asked.stream or asked.return_tokens else -1,
        truncate=bool(asked.truncate),
        shift=asked.context_shift,
        special=bool(asked.special),
        keep=asked.n_keep or 0,
        cache_prompt=asked.cache_prompt,
    )


async def _answered(request: Request, asked: NativeRequest, tasks: list[Task], many: bool) -> Response:
    if len(tasks) * tasks[0].n > MOST_PROMPTS:
        raise ApiError(400, f"{len(tasks)} prompts with {tasks[0].n} answers each are more than {MOST_PROMPTS} at once", param="prompt")
    if asked.stream:
        return relay.stream(request, asked.model, tasks, partial(_frames, asked))
    return await relay.whole(request, asked.model, tasks, partial(_whole, asked, many or tasks[0].n > 1))


def _whole(asked: NativeRequest, many: bool, answer: Answer, wholes: Sequence[Whole]) -> Any:
    shown = [_last(asked, answer, whole.end, whole.text, whole.tokens) for whole in wholes if whole.end]
    return shown if many else shown[0]


async def _frames(asked: NativeRequest, answer: Answer) -> AsyncGenerator[bytes, None]:
    async for piece in relay.watched(answer, bool(asked.return_progress)):
        index = piece.choice
        match piece:
            case Text(text=text, tokens=tokens) if text or tokens:
                shown = {**_running(answer, index, text, tokens), **_probabilities(asked, tokens)}
                if asked.timings_per_token:
                    shown["timings"] = answer.timings(index)
                yield event(msgspec.json.encode(shown))
            case relay.PromptProgress():
                yield event(msgspec.json.encode({**_running(answer, index, "", ()), "prompt_progress": piece.shown()}))
            case End():
                yield event(msgspec.json.encode(_last(asked, answer, piece, "", ())))


def _running(answer: Answer, index: int, text: str, tokens: Sequence[TokenLog]) -> dict[str, Any]:
    """A part of an answer that goes on."""
    generation = answer.generation(index)
    return {
        "index": index,
        "content": text,
        "tokens": [token.id for token in tokens],
        "stop": False,
        "id_slot": answer.choices[index].slot,
        "tokens_predicted": answer.choices[index].n_read,
        "tokens_evaluated": len(generation.prompt_ids),
    }


def _last(asked: NativeRequest, answer: Answer, end: End, text: str, tokens: Sequence[TokenLog]) -> dict[str, Any]:
    """A whole answer, or the end of a stream of it."""
    generation = answer.generation(end.choice)
    stop_type = "limit" if end.reason == "length" else "word" if end.stop_word is not None else "eos"
    shown = {
        "index": end.choice,
        "content": text,
        "tokens": [token.id for token in tokens] if asked.return_tokens else [],
        "id_slot": answer.choices[end.choice].slot,
        "stop": True,
        "model": answer.model.name,
        "tokens_predicted": end.usage.answer,
        "tokens_evaluated": end.usage.prompt,
        "generation_settings": settings_of(answer, end.choice),
        "prompt": answer.model.engine.tokenizer.decode(generation.prompt_ids, skip_special=False),
        "has_new_line": answer.choices[end.choice].has_new_line,
        "truncated": end.n_dropped > 0,
        "dropped_tokens": end.n_dropped,
        "stop_type": stop_type,
        "stopping_word": end.stop_word or "",
        "tokens_cached": end.usage.cached,
        "timings": end.timings,
        **_probabilities(asked, tokens),
    }
    return shown if asked.response_fields is None else _picked(shown, asked.response_fields)


def settings_of(answer: Answer, index: int) -> dict[str, Any]:
    """What an answer was generated with, under llama.cpp's names."""
    prepared = answer.choices[index].prepared
    task, sampling = prepared.task, asdict(prepared.sampling)
    return {
        "n_ctx": prepared.model.engine.n_ctx,
        "n_predict": prepared.n_predict,
        "max_tokens": prepared.n_predict,
        **sampling,
        "seed": answer.generation(index).seed,
        "logit_bias": [{"token": id_, "bias": max(bias, -1e9)} for id_, bias in sampling["logit_bias"]],
        "stop": list(task.stop),
        "n_keep": task.keep,
        "n_probs": max(task.n_top, 0),
        "grammar": task.output.value if task.output and task.output.kind == "grammar" else "",
        "json_schema": task.output.value if task.output and task.output.kind == "json_schema" else None,
    }


def _probabilities(asked: NativeRequest, tokens: Sequence[TokenLog]) -> dict[str, Any]:
    return {"completion_probabilities": native_logs(tokens)} if asked.n_probs and tokens else {}


def _picked(shown: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Only these fields; a path such as generation_settings/seed becomes a field of its own."""
    picked = {}
    for name in names:
        value: Any = shown
        for part in name.split("/"):
            value = value.get(part, msgspec.UNSET) if isinstance(value, Mapping) else msgspec.UNSET
        if value is not msgspec.UNSET:
            picked[name.rsplit("/", 1)[-1]] = value
    return picked


ROUTES: Final = [
    Route("/completion", completion, methods=["POST"]),
    Route("/completions", completion, methods=["POST"], name="completions_native"),
    Route("/infill", infill, methods=["POST"]),
]
