"""Chat templates: a conversation in, the text a model was trained on out.

Knows that templates of public models differ in what they accept, and climbs a ladder of rewrites until one renders everything it was
given; must not know tokens or files. What had to be rewritten or got lost is told in notes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any, Final

from ggrun.text.conversation import (
    Conversation,
    Functions,
    generic_tools,
    joined_turns,
    marked_calls,
    marked_tools,
    null_contents,
    part_contents,
    read_conversation,
    short_ids,
    single_calls,
    string_arguments,
    system_in_user,
    text_calls,
)
from ggrun.text.error import TextError

Rewrite = Callable[[Conversation], Conversation]

# Rungs in the order they are tried, by what they change: how calls are written, how they are arranged, and who speaks.
_CALL_FORMS: Final[tuple[tuple[Rewrite, ...], ...]] = (
    (), (string_arguments,), (null_contents,), (string_arguments, null_contents), (part_contents,),
)  # fmt: skip
_CALL_ORDERS: Final[tuple[tuple[Rewrite, ...], ...]] = ((), (short_ids,), (single_calls,), (single_calls, short_ids))
_TURNS: Final[tuple[tuple[Rewrite, ...], ...]] = ((), (joined_turns,), (system_in_user,), (system_in_user, joined_turns))

NOTES: Final[dict[Rewrite, str]] = {
    single_calls: "the chat template takes one tool call a message: calls made together are shown one after another",
    system_in_user: "the chat template takes no system message here: it stands in front of the user's first one",
    joined_turns: "the chat template wants user and assistant to take turns: neighbouring messages of one role were joined",
    text_calls: "the chat template does not show tool calls: they are written as JSON in <tool_call> tags",
    generic_tools: "the chat template does not know tools: they are described in the first turn, and calls are JSON in <tool_call> tags",
}


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """text: the prompt, special tokens spelled out. notes: sentences about what was worked around or left out.

    tools_as_text: the template knows no tools, so they are described in words of ggrun's. calls_as_text: it shows no calls.
    """

    text: str
    notes: tuple[str, ...] = ()
    tools_as_text: bool = False
    calls_as_text: bool = False


class ChatTemplate:
    """`source`: Jinja. `tool_source`: another template, for conversations with tools. note: told with every rendering.

    TextError when a source is no valid template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "", tool_source: str | None = None, note: str = "") -> None:
        from ggrun.text.sandbox import compile_template  # Jinja takes 50 ms to import

        self.source = source
        self._tool_source = tool_source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._notes = (note,) if note else ()
        for text in filter(None, (source, tool_source)):
            compile_template(text)

    @property
    def sources(self) -> tuple[str, ...]:
        """The Jinja sources: that for conversations with tools first, where there is one."""
        return tuple(filter(None, (self._tool_source, self.source)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """The prompt of a conversation.

        messages, tools: as OpenAI's API takes them. variables: more for the template, such as enable_thinking.
        TextError, with the template's own words, when no rewrite makes it accept the conversation, and when it exceeds a limit.
        """
        from ggrun.text.sandbox import Refused, render

        talk = read_conversation(messages, tools)
        if "developer" not in self.source:
            talk = Conversation(
                tuple(m | {"role": "system"} if m["role"] == "developer" else m for m in talk.messages), talk.tools
            )  # fmt: skip
        first_error: Exception | None = None
        best: tuple[int, RenderedChat] | None = None
        for source, changes, rewritten in self._attempts(talk):
            try:
                text = render(source, self._variables(rewritten, add_generation_prompt, variables or {}))
            except Refused as error:
                first_error = first_error or TextError(f"the chat template refuses this conversation: {error}")
                continue
            except TextError as error:
                if str(error).startswith("the chat template was stopped"):
                    raise
                first_error = first_error or error
                continue
            missing = list(_missing(rewritten, text)) or [
                *self._hidden_calls(source, rewritten, variables or {}),
                *self._hidden_tools(source, rewritten, variables or {}),
            ]
            notes = (*self._notes, *(NOTES[change] for change in changes if change in NOTES))
            if missing:
                notes = (*notes, f"the chat template leaves out {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}")
            if best is None or len(missing) < best[0]:
                best = (len(missing), RenderedChat(text, notes, generic_tools in changes, text_calls in changes))
            if not missing:
                break
        if best is None:
            raise first_error or TextError("the chat template renders nothing")
        return best[1]

    def _attempts(self, talk: Conversation) -> Iterator[tuple[str, tuple[Rewrite, ...], Conversation]]:
        """Source, rewrites and their result, best first, each result once for each source."""
        sources = [self.source]
        if self._tool_source and (talk.tools or talk.has_calls):
            sources.insert(0, self._tool_source)
        call_forms = _CALL_FORMS if talk.has_calls else ((), (part_contents,))
        orders = _CALL_ORDERS if talk.has_calls else ((),)
        ladder = [(*order, *turns, *form) for turns, order, form in product(_TURNS, orders, call_forms)]
        seen: list[Conversation] = []
        for changes in ladder:
            if (rewritten := _apply(changes, talk)) not in seen:
                seen.append(rewritten)
                for source in sources:
                    yield source, changes, rewritten
        if talk.tools or talk.has_calls:
            as_text = ((text_calls,), (generic_tools,))
            for changes in ((*tools, *turns, *form) for tools, turns, form in product(as_text, _TURNS, ((), (part_contents,)))):
                if (rewritten := _apply(changes, talk)) not in seen:
                    seen.append(rewritten)
                    yield sources[0] if text_calls in changes else self.source, changes, rewritten

    def _hidden_calls(self, source: str, talk: Conversation, variables: Mapping[str, Any]) -> list[str]:
        """Tool calls that the template leaves out, which their words alone do not tell: tools and users use the same."""
        from ggrun.text.sandbox import Refused, render

        marked, marks = marked_calls(talk)
        if not marks:
            return []
        try:
            text = render(source, self._variables(marked, True, variables))
        except (Refused, TextError):
            return []
        return [] if all(mark in text for mark in marks) else ["tool calls"]

    def _hidden_tools(self, source: str, talk: Conversation, variables: Mapping[str, Any]) -> list[str]:
        """Tools that the template leaves out although their names show: the template itself writes such words ("start", "user")."""
        from ggrun.text.sandbox import Refused, render

        own_words = " ".join([source, *(message["role"] for message in talk.messages)])
        names = {tool["function"]["name"] for tool in talk.tools if tool["function"]["name"] in own_words}
        if not names:
            return []
        marked, marks = marked_tools(talk)
        try:
            text = render(source, self._variables(marked, True, variables))
        except (Refused, TextError):
            return []
        return [f"the tool {name}" for name, mark in marks.items() if name in names and mark not in text]

    def _variables(self, talk: Conversation, add_generation_prompt: bool, given: Mapping[str, Any]) -> dict[str, Any]:
        tools = deepcopy(list(talk.tools)) or ([] if _ALWAYS_LOOPS in self.source.replace(" ", "") else None)
        return {
            **self._tokens,
            "messages": deepcopy(list(talk.messages)),  # some templates change what they are given
            "tools": tools,
            **({"xml_tools": tools} if "xml_tools" in self.source else {}),  # SmolLM3's own name
            **({"functions": Functions(t["function"] for t in tools or ())} if tools or "functions is" not in self.source else {}),
            "datetime": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "add_generation_prompt": add_generation_prompt,
            **deepcopy(dict(given)),
        }


_ALWAYS_LOOPS: Final = "fortoolintools%}"


def _apply(changes: Sequence[Rewrite], talk: Conversation) -> Conversation:
    for change in changes:
        talk = change(talk)
    return talk


def _missing(talk: Conversation, text: str) -> Iterator[str]:
    """What of the conversation does not show in the text: the template dropped it."""
    said = [part for message in talk.messages for part in _said(message)]
    called = [call["function"]["name"] for message in talk.messages for call in message.get("tool_calls", ())]
    for tool in talk.tools:
        name, description = tool["function"]["name"], tool["function"]["description"]
        elsewhere = called.count(name) + sum(part.count(name) for part in said)
        if text.count(name) <= elsewhere and not (description and _shows(description, text)):
            yield f"the tool {name}"
    for i, message in enumerate(talk.messages):
        for call in message.get("tool_calls", ()):
            function = call["function"]
            if not _shows(function["name"], text) or not all(_shows(value, text) for value in _leaves(function["arguments"])):
                yield f"the call of {function['name']} in message {i}"
        # Beside calls, and of earlier thoughts, models are often not shown what was said.
        if not message.get("tool_calls") and not all(_shows(part, text) for part in _said(message)):
            yield f"the text of message {i} ({message['role']})"


def _said(message: Mapping[str, Any]) -> Iterator[str]:
    content = message["content"]
    for said in [content] if isinstance(content, str) else [part["text"] for part in content or ()]:
        if message["role"] == "system":
            said = said.replace("/no_think", "").replace("/think", "")  # switches, not text, to some templates
        if message["role"] == "assistant":
            for end_of_thought in ("</think>", "<channel|>", "[/THINK]"):
                said = said.rsplit(end_of_thought, 1)[-1]
        yield said


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value


def _shows(said: str, text: str) -> bool:
    said = said.strip()
    if said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text or json.dumps(said)[1:-1] in text:
        return True
    return "".join(said.split()) in "".join(text.split())
