"""The form an answer is held to: a schema or grammar that was asked for, calls of tools, or either; a thought may come before it.

Knows constraints and how a model writes thoughts and calls; must not know requests of any API. Errors are ApiErrors that name a field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ggrun.errors import GgrunError
from ggrun.server.aside import aside
from ggrun.server.errors import ApiError
from ggrun.server.reading import thought_marks

if TYPE_CHECKING:
    from ggrun.engine.constraint import Constraint
    from ggrun.server.task import Output, Task
    from ggrun.text import ChatTemplate, Tokenizer
    from ggrun.text.output import OutputStyle


async def constraint_of(
    tokenizer: Tokenizer, template: ChatTemplate, task: Task, prompt: str, style: OutputStyle | None
) -> Constraint | None:
    """What holds the answer to a task; None: nothing. prompt, style: of a conversation. ApiError 400 for a form that cannot be."""
    tools = () if task.tool_choice == "none" else task.tools
    calls = _calls(task, tools)
    if task.output is None and not calls:
        return None
    return await aside(lambda: _made(tokenizer, template, task, prompt, style, calls))


def _calls(task: Task, tools: Sequence[Mapping[str, Any]]) -> str:
    """How calls are held: "required", a function's name, "auto" for those that the model begins, "" not at all."""
    if not tools or task.tool_choice != "auto":
        return task.tool_choice if tools else ""
    if task.output is not None:
        return "required"  # or else the form: the answer is one of both
    return "auto" if any(tool["function"].get("strict") for tool in tools) else ""


def _made(
    tokenizer: Tokenizer, template: ChatTemplate, task: Task, prompt: str, style: OutputStyle | None, calls: str
) -> Constraint | None:
    from ggrun.engine.either import Either
    from ggrun.engine.preamble import AfterThought

    marks = thought_marks(template, style, prompt, bool(task.reasoning)) if style else None
    ways: list[Constraint] = []
    if calls and style:
        called = _of_calls(tokenizer, task, style, calls, marks is not None, prompt)
        if called is None or task.tool_choice != "auto" or task.output is None:
            return called
        ways.append(called)
    if task.output is not None:
        form = _of_output(tokenizer, task.output)
        ways.append(AfterThought(form, tokenizer, *marks) if marks else form)
    return ways[0] if len(ways) == 1 else Either(ways)


def _of_output(tokenizer: Tokenizer, output: Output) -> Constraint:
    from ggrun.engine.constraint import constraint_for

    try:
        return constraint_for(output.kind, output.value, tokenizer)
    except GgrunError as error:
        raise ApiError(400, str(error), param=output.param) from None


def _of_calls(tokenizer: Tokenizer, task: Task, style: OutputStyle, calls: str, thinks: bool, prompt: str) -> Constraint | None:
    from ggrun.engine.constraint import constraint_for
    from ggrun.engine.schema import read_schema
    from ggrun.text.tool_calls.grammar import call_grammar

    try:
        grammar = call_grammar(
            style.calls[0],
            task.tools,
            calls,
            task.parallel_tool_calls,
            tokenizer=tokenizer,
            reasoning=style.reasoning if thinks else None,
            opened=style.reasoning.opened_by(prompt),
            prepare=read_schema,
        )
        return constraint_for("lark", grammar, tokenizer) if grammar else None
    except GgrunError as error:
        _blame(tokenizer, task.tools)
        raise ApiError(400, f"the tools cannot be called: {error}", param="tools") from None


def _blame(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]]) -> None:
    """ApiError for the tool whose schema cannot be used, if it is one's fault."""
    from ggrun.engine.constraint import constraint_for

    for i, tool in enumerate(tools):
        try:
            constraint_for("json_schema", tool["function"].get("parameters") or {}, tokenizer)
        except GgrunError as error:
            raise ApiError(400, str(error), param=f"tools[{i}].function.parameters") from None
