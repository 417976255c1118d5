"""What lies between a request and the engine: Tasks in, Pieces out.

Knows models, templates, sampling's fields and the engine's interface; must not know HTTP or the shape of any API's answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ggrun.engine.sampling import Sampling
from ggrun.errors import GgrunError
from ggrun.server.aside import aside
from ggrun.server.choices import Answer, Choice
from ggrun.server.errors import ApiError
from ggrun.server.forms import constraint_of
from ggrun.server.logprobs import TokenLogs
from ggrun.server.reading import Parsed, Plain, Reader, style_of
from ggrun.server.rendering import begun_by, prompt_of
from ggrun.server.settings import Settings
from ggrun.server.task import Call, End, Piece, Task, Text, Thought, TokenLog
from ggrun.server.thinking import budget_of, thinking
from ggrun.text.output import OutputParser
from ggrun.text.reasoning import ReasoningFormat

if TYPE_CHECKING:
    from ggrun.engine.budget import ThoughtBudget
    from ggrun.engine.constraint import Constraint
    from ggrun.server.shelf import Defaults, OpenModel, Shelf
    from ggrun.text import Tokenizer
    from ggrun.text.output import OutputStyle


@dataclass(frozen=True)
class Prepared:
    """A task that can be submitted: its prompt fits, its settings are valid. text: of a conversation, its prompt. style: how the model
    marks thoughts and calls, for those. constraints: of each choice."""

    model: OpenModel
    task: Task
    ids: list[int]
    sampling: Sampling
    n_predict: int
    constraints: Sequence[Constraint | None] = (None,)
    text: str = ""
    style: OutputStyle | None = None


@dataclass
class WholeCall:
    """A tool call; arguments: its JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Whole:
    """One choice's whole answer. calls: by their index. tokens, thought_tokens: their log probabilities, where asked for."""

    text: str = ""
    thought: str = ""
    calls: dict[int, WholeCall] = field(default_factory=dict)
    tokens: list[TokenLog] = field(default_factory=list)
    thought_tokens: list[TokenLog] = field(default_factory=list)
    end: End | None = None


async def ask(shelf: Shelf, name: str | None, *tasks: Task) -> Answer:
    """Start answering tasks with the model of that name. Choices are numbered through: those of the first task, then the second's.

    Everything wrong with a request is raised here, as ApiError, before anything streams. The model stays in use until the Answer is
    closed: use `async with`.
    """
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(shelf.use(name))
        prepared = [await prepare(model, task, shelf.settings) for task in tasks]
        answer = Answer(model, stack.pop_all().aclose)
    try:
        submit(answer, prepared)
    except BaseException:
        await answer.aclose()
        raise
    return answer


async def prepare(model: OpenModel, task: Task, settings: Settings | None = None) -> Prepared:
    """Render, tokenize and check a task, its gaps filled with the model's and the server's defaults. ApiError for what cannot be done."""
    task = with_defaults(task, model.defaults, settings or Settings())
    engine = model.engine
    n_vocab = engine.spec.n_vocab
    sampling = sampling_of(engine.tokenizer, model.defaults.sampling, task.sampling)
    ids, text = await prompt_of(model, task)
    if not ids:
        param = "prompt" if task.messages is None else "messages"
        raise ApiError(400, "the prompt is empty: there is no token to continue from", param=param)
    if (bad := next((id_ for id_ in ids if not 0 <= id_ < n_vocab), None)) is not None:
        raise ApiError(400, f"token id {bad} is outside the model's vocabulary of {n_vocab}", param="prompt")
    if (bad := next((id_ for id_, _ in sampling.logit_bias if id_ >= n_vocab), None)) is not None:
        raise ApiError(400, f"logit_bias names token {bad}, but the model has {n_vocab} tokens", param="logit_bias")
    if len(ids) >= engine.n_ctx and not task.truncate:
        raise too_long(len(ids), engine.n_ctx)
    n_predict = task.n_predict if task.n_predict is not None else model.defaults.n_predict
    style = await style_of(engine.chat_template) if task.messages is not None else None
    constraint = await constraint_of(engine.tokenizer, engine.chat_template, task, text, style)
    return Prepared(model, task, ids, sampling, n_predict, await _for_each(constraint, task.n), text, style)


async def _for_each(constraint: Constraint | None, n: int) -> Sequence[Constraint | None]:
    """A constraint for each of n choices, all at their beginning: they are copied before the first is under way."""
    if constraint is None or n == 1:
        return [constraint] * n
    return [constraint, *await aside(lambda: [constraint.copy() for _ in range(n - 1)])]


def with_defaults(task: Task, defaults: Defaults, settings: Settings) -> Task:
    """The task with what it does not say itself."""
    return replace(
        task,
        template={
            **(thinking(False) if (settings.reasoning_budget if task.thought_limit is None else task.thought_limit) == 0 else {}),
            **settings.template,
            **defaults.template,
            **task.template,
        },
        stop=(*task.stop, *defaults.stop),
        keep=task.keep or defaults.keep,
        special=task.special or defaults.special,
        shift=settings.context_shift if task.shift is None else task.shift,
        cache_prompt=settings.cache_prompt if task.cache_prompt is None else task.cache_prompt,
        reasoning=settings.reasoning_format != "none" if task.reasoning is None else task.reasoning,
        thought_limit=settings.reasoning_budget if task.thought_limit is None else task.thought_limit,
        last_thought=settings.reasoning_budget_message,
    )


def submit(answer: Answer, prepared: Sequence[Prepared]) -> None:
    """Give the engine every choice of every task. ApiError for what it refuses."""
    for p in prepared:
        engine, task, seed = p.model.engine, p.task, p.sampling.seed
        shown = p.style.shown_ids(engine.tokenizer) if p.style else frozenset()
        generate = partial(
            engine.submit,
            p.ids,
            n_predict=p.n_predict,
            stop=task.stop,
            keep=task.keep,
            on_overflow="shift" if task.shift else "stop",
            show_special=task.special,
            shown=shown,
            strip_space=task.messages is not None,
            n_top=task.n_top,
            truncate=task.truncate,
            cache_prompt=task.cache_prompt is not False,
            prompt_logprobs=task.prompt_logs,
        )
        for i, constraint in enumerate(p.constraints):
            number = len(answer.choices)
            sampling = replace(p.sampling, seed=(seed + i) % (1 << 64)) if i and seed >= 0 else p.sampling
            choice = Choice(number, p, reader_of(p, number), TokenLogs(engine.tokenizer, task.n_top, task.special, shown))
            try:
                answer.start(choice, partial(generate, sampling=sampling, constraint=constraint, budget=_budget(p)))
            except GgrunError as error:
                raise ApiError(400, str(error)) from None


def _budget(p: Prepared) -> ThoughtBudget | None:
    """What ends a choice's thoughts, where they are limited."""
    if p.style is None:
        return None
    engine = p.model.engine
    return budget_of(engine.tokenizer, engine.chat_template, p.style, p.text, p.task)


async def collect(answer: Answer) -> list[Whole]:
    """Read all of an answer, choice by choice, and close it."""
    async with answer:
        wholes = [Whole() for _ in answer.choices]
        async for piece in answer:
            _add(wholes[piece.choice], piece)
    return wholes


def sampling_of(tokenizer: Tokenizer, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Sampling:
    """The request's settings over the model's. ApiError names the field that is out of its range.

    In logit_bias a text stands for each of its tokens.
    """
    if "logit_bias" in given:
        pairs = [
            (id_, bias)
            for token, bias in given["logit_bias"]
            for id_ in ([token] if isinstance(token, int) else tokenizer.encode(token, add_special=False, parse_special=True))
        ]
        given = {**given, "logit_bias": tuple(pairs)}
    if -(2**63) <= given.get("seed", 0) < -1:  # OpenAI's are signed; -1 asks for a random one
        given = {**given, "seed": given["seed"] % 2**64}
    try:
        return Sampling(**{**defaults, **given})
    except GgrunError:
        for name, value in given.items():
            try:
                Sampling(**{name: value})
            except GgrunError as error:
                raise ApiError(400, _by_field(str(error), name), param=name) from None
        raise


def too_long(n_prompt: int, n_ctx: int) -> ApiError:
    """What a prompt gets that leaves no room for an answer."""
    return ApiError(
        400,
        f"the prompt has {n_prompt} tokens and the context holds {n_ctx}; shorten it, start the server with a larger -c, "
        "or send truncate: true to have its middle left out",
        type="exceed_context_size_error",
        code="context_length_exceeded",
        extra={"n_prompt_tokens": n_prompt, "n_ctx": n_ctx},
    )


def reader_of(prepared: Prepared, number: int) -> Reader:
    """What takes a choice's text apart."""
    task = prepared.task
    if prepared.style is None:
        return Plain(number)
    tools = () if task.tool_choice == "none" else task.tools
    reasoning: ReasoningFormat = "auto" if task.reasoning else "none"
    parser = OutputParser(prepared.style, tools, reasoning=reasoning, prompt=prepared.text, begun=begun_by(task))
    return Parsed(number, parser, task.parallel_tool_calls)


def _add(whole: Whole, piece: Piece) -> None:
    if isinstance(piece, Text):
        whole.text += piece.text
        whole.tokens += piece.tokens
    elif isinstance(piece, Thought):
        whole.thought += piece.text
        whole.thought_tokens += piece.tokens
    elif isinstance(piece, Call):
        call = whole.calls.setdefault(piece.index, WholeCall("", ""))
        call.id, call.name = piece.id or call.id, piece.name or call.name
        call.arguments += piece.arguments
        if piece.state == "broken":
            del whole.calls[piece.index]
    elif isinstance(piece, End):
        whole.end = piece


def _by_field(sentence: str, name: str) -> str:
    """An error of Sampling, which names flags, for someone who wrote a field."""
    flag, _, rest = sentence.partition(" ")
    return f"{name} {rest}" if flag.startswith("--") else sentence
