"""From a Task to token ids: the model's chat template, a raw prompt, or a text with a gap.

Knows tokenizers and templates; must not know requests of any API, sampling or the engine's queue. Errors are ApiErrors that name a field.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ggrun.server.aside import aside
from ggrun.server.errors import ApiError
from ggrun.text import TextError

if TYPE_CHECKING:
    from ggrun.server.shelf import OpenModel
    from ggrun.server.task import Task
    from ggrun.text import Tokenizer

T = TypeVar("T")

LONG: Final = 2000  # characters from which on rendering and tokenizing leave the event loop to others
FIM: Final = ("fim_pre", "fim_suf", "fim_mid")
_told: set[tuple[str, str]] = set()


async def prompt_of(model: OpenModel, task: Task) -> tuple[list[int], str]:
    """The ids of a task's prompt and, of a conversation, its text. What the template could not do is said once on stderr.

    ApiError 400 for what cannot be rendered.
    """
    if task.messages is not None and task.prompt_ids is None:
        text = await rendered(model, task)
        return await _measured(len(text), lambda: chat_tokens(model.engine.tokenizer, text)), text
    return await _raw_ids(model.engine.tokenizer, task), ""


async def prompt_ids(model: OpenModel, task: Task) -> list[int]:
    """The ids alone."""
    return (await prompt_of(model, task))[0]


async def _raw_ids(tokenizer: Tokenizer, task: Task) -> list[int]:
    if task.prompt_ids is not None:
        return list(task.prompt_ids)
    if task.suffix is not None:
        return await _measured(_length(task.prompt) + len(task.suffix), lambda: with_gap(tokenizer, task))
    return await _measured(_length(task.prompt), lambda: raw_tokens(tokenizer, task.prompt if task.prompt is not None else ""))


async def rendered(model: OpenModel, task: Task) -> str:
    """A conversation as the model's template writes it: the text of the prompt, special tokens spelled out."""
    messages = with_system(task.messages or (), model.defaults.system)
    size = sum(_length(message.get("content")) for message in messages) + 500 * len(task.tools)
    text, notes = await _measured(size, lambda: _render(model, task, messages))
    for note in notes:
        tell(model.name, note)
    return text


def with_system(messages: Sequence[Mapping[str, Any]], system: str | None) -> Sequence[Mapping[str, Any]]:
    """The messages behind the server's own system prompt, where they bring none."""
    if system and not any(message.get("role") in ("system", "developer") for message in messages):
        return [{"role": "system", "content": system}, *messages]
    return messages


def chat_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a rendered conversation. Most templates write the first token themselves; twice would be wrong."""
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def raw_tokens(tokenizer: Tokenizer, prompt: str | Sequence[str | int]) -> list[int]:
    """The ids of a prompt that is continued as it is: text, or texts and ids in a row, where only a text in front gets a first token."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, parse_special=True)
    ids: list[int] = []
    for i, part in enumerate(prompt):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part, add_special=i == 0, parse_special=True)
    return ids


def with_gap(tokenizer: Tokenizer, task: Task) -> list[int]:
    """The ids that ask for what stands between a prompt and a suffix, other files before them. ApiError where the vocabulary cannot."""
    special = tokenizer.special_ids
    if missing := [role for role in FIM if role not in special]:
        reason = f"this model cannot fill a gap: its vocabulary has no token for {', '.join(missing)}"
        raise ApiError(400, reason, "not_supported_error", param=task.gap)

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    prefix = raw_tokens(tokenizer, [task.prompt] if isinstance(task.prompt, str) else list(task.prompt or ()))
    if tokenizer.add_bos and prefix[:1] == [tokenizer.bos_id]:
        del prefix[0]
    ids = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    if task.extra and "fim_rep" in special:
        ids += [special["fim_rep"], *plain("project\n")]
    for name, text in task.extra:
        head = [special["fim_sep"], *plain(f"{name}\n")] if "fim_sep" in special else plain(f"--- {name} ---\n")
        ids += [*head, *plain(text)]
    if task.extra and "fim_sep" in special:
        ids += [special["fim_sep"], *plain("current\n")]
    return [*ids, special["fim_pre"], *prefix, special["fim_suf"], *plain(task.suffix or ""), special["fim_mid"], *plain(task.begun)]


def tell(model: str, note: str) -> None:
    """Say a sentence about a model on stderr, once while the server runs."""
    if (model, note) not in _told:
        _told.add((model, note))
        print(f"{model}: {note}", file=sys.stderr, flush=True)


def _render(model: OpenModel, task: Task, messages: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    begun = begun_by(task)
    if _is_begun(task):
        messages = messages[:-1]
    if not messages:
        raise ApiError(400, "messages is empty: there is nothing to answer", param="messages")
    tools = None if task.tool_choice == "none" else list(task.tools) or None
    try:
        result = model.engine.chat_template.render(messages, tools=tools, variables=dict(task.template) or None)
    except TextError as error:
        raise ApiError(400, str(error), param="messages") from None
    return result.text + begun, result.notes


def begun_by(task: Task) -> str:
    """The beginning of the answer that a task brings along, as the end of its prompt."""
    return _text_of(task.messages[-1].get("content")) if _is_begun(task) and task.messages else ""


def _is_begun(task: Task) -> bool:
    return bool(task.prefill and task.messages) and (task.messages or ())[-1].get("role") == "assistant"


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


def _length(content: Any) -> int:
    if isinstance(content, (str, bytes)):
        return len(content)
    if isinstance(content, Mapping):
        return _length(content.get("text", ""))
    return sum(map(_length, content)) if isinstance(content, Sequence) else 1


async def _measured(size: int, work: Callable[[], T]) -> T:
    """The result of work, from another thread when there is much of it."""
    return work() if size < LONG else await aside(work)
