"""How much a model is asked to think, as variables of its chat template, and how much it may.

Templates have no common name for it: Qwen's and its like read `enable_thinking`, DeepSeek's and Granite's `thinking`, gpt-oss's
`reasoning_effort`. All are set; a template does not see the ones it does not read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ggrun.engine.budget import ThoughtBudget, ThoughtMarks
from ggrun.server.reading import thought_marks
from ggrun.server.rendering import begun_by

if TYPE_CHECKING:
    from ggrun.server.task import Task
    from ggrun.text import ChatTemplate, Tokenizer
    from ggrun.text.output import OutputStyle

OFF: Final = frozenset({"none", "off", "false"})
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def thinking(wish: str | bool | None) -> dict[str, Any]:
    """The variables for an effort ("none" for no thinking), for yes or no, or for no wish at all: the template's own default."""
    if wish is None:
        return {}
    thinks = wish is not False and wish not in OFF
    effort = {"reasoning_effort": wish} if thinks and isinstance(wish, str) else {}
    return {"enable_thinking": thinks, "thinking": thinks, **effort}


_CHANNEL: Final = "<|channel|>analysis<|message|>"  # gpt-oss's thoughts, and how it goes on to the answer
_CHANNEL_END: Final = re.compile(rb"<\|(?:end|call|return|start|channel)\|>")
_TO_ANSWER: Final = "<|end|><|start|>assistant<|channel|>final<|message|>"


def budget_of(tokenizer: Tokenizer, template: ChatTemplate, style: OutputStyle, prompt: str, task: Task) -> ThoughtBudget | None:
    """What ends the thoughts of an answer to this prompt once they are as long as the task allows; None where nothing need end them."""
    n = task.thought_limit
    if n is None or n < 0:
        return None
    marks = thought_marks(template, style, prompt, True)
    if marks is None:
        return None
    if style.reasoning.channels:
        return ThoughtBudget(tokenizer, n, ThoughtMarks(_CHANNEL, _CHANNEL_END, task.last_thought + _TO_ANSWER, again=True))
    begin, end, opened = marks
    begun = begun_by(task)
    opened = opened or (begun.lstrip().startswith(begin) and style.reasoning.end not in begun)
    closing = task.last_thought + style.reasoning.end + style.reasoning.then
    return ThoughtBudget(tokenizer, n, ThoughtMarks(begin, end, closing, opened))
