"""Thoughts in a model's output: how a model marks them, and reading them as they arrive.

Knows chat templates as text and as something that renders; must not know tool calls or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from ggrun.text.error import TextError
from ggrun.text.source import Emit, Markers, Source, Steps

if TYPE_CHECKING:
    from ggrun.text.template import ChatTemplate

ReasoningFormat = Literal["none", "deepseek", "auto"]
REASONING_FORMATS: Final[tuple[str, ...]] = get_args(ReasoningFormat)


@dataclass(frozen=True, slots=True)
class ReasoningStyle:
    """Thoughts come first, between begin and end. dropped: marks around the answer that follows, which are no part of it.

    signature: what a template contains whose model thinks this way. channels: the model names a channel before everything it says, as
    gpt-oss does; begin and end are then not used. then: what is written between a thought and what follows it.
    """

    name: str
    begin: str
    end: str
    dropped: tuple[str, ...] = ()
    signature: tuple[str, ...] = ()
    channels: bool = False
    then: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that must be seen, though they may be special tokens, which are not shown."""
        return (self.begin, self.end, *self.dropped)

    def opened_by(self, prompt: str) -> bool:
        """Whether a rendered prompt ends with the beginning of a thought, so that the output goes on with it."""
        return not self.channels and prompt.rstrip().endswith(self.begin.rstrip())


def _style(name: str, begin: str, end: str, dropped: tuple[str, ...] = (), signature: tuple[str, ...] = ()) -> ReasoningStyle:
    return ReasoningStyle(name, begin, end, dropped, signature or (begin, end))


THINK: Final = _style("think", "<think>", "</think>", signature=("think>",))
# In the order they are tried.
STYLES: Final[tuple[ReasoningStyle, ...]] = (
    ReasoningStyle(
        "channels", "<|channel|>", "<|message|>", ("<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"),
        ("<|channel|>", "<|message|>"), channels=True,
    ),
    ReasoningStyle(
        "solar", "<|think|>", "<|end|>", ("<|begin|>assistant", "<|begin|>", "<|content|>"),
        ("<|think|>", "<|content|>", "<|begin|>assistant"), then="<|begin|>assistant",
    ),
    _style("gemma4", "<|channel>thought", "<channel|>"),
    _style("mistral", "[THINK]", "[/THINK]"),
    _style("seed", "<seed:think>", "</seed:think>"),
    _style("command", "<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    _style("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    _style("kimi-vl", "◁think▷", "◁/think▷"),
    _style("granite", "Here is my thought process:", "Here is my response:"),
    _style("think-response", "<think>", "</think>", ("<response>", "</response>"), ("<think>", "<response>")),
    _style("think-answer", "<think>", "</think>", ("<answer>", "</answer>"), ("<think>", "<answer>")),
    THINK,
)  # fmt: skip

_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
_THOUGHT, _ANSWER = "mark of a thought", "mark of an answer"
_TAG: Final = re.compile(r"<[^<>\s]{2,60}>|\[[^\[\]\s]{2,60}\]|◁[^◁▷\s]{2,60}▷")


def reasoning_of(template: ChatTemplate) -> ReasoningStyle:
    """How a template's model marks thoughts: a known style, or the tags the template writes around one. <think> where it tells nothing:
    then an answer is only taken for a thought when it begins with the tag."""
    for style in STYLES:
        if all(any(text in source for source in template.sources) for text in style.signature):
            return style
    for text in _rendered_thoughts(template):
        before, _, after = text.partition(_THOUGHT)
        begin, end = _TAG.findall(before), _TAG.match(after.partition(_ANSWER)[0].strip())
        if begin and end and before.rstrip().endswith(begin[-1]):
            return ReasoningStyle("derived", begin[-1], end[0])
    return THINK


def _rendered_thoughts(template: ChatTemplate) -> Iterator[str]:
    for field in _FIELDS:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER, field: _THOUGHT}]
        with suppress(TextError):
            text = template.render(messages, add_generation_prompt=False).text
            if 0 <= text.find(_THOUGHT) < text.find(_ANSWER):
                yield text


def read_thought(source: Source, style: ReasoningStyle, opened: bool, thought: Emit, text: Emit) -> Steps[None]:
    """The thought at the beginning of an output, if there is one, and the white space around it. Whatever follows is left to read.

    opened: its begin was in the prompt. thought: takes the thought, without white space at its ends; text: white space of an answer that
    begins without a thought.
    """
    space = yield from source.skip_space()
    begun = yield from source.follows(style.begin)
    if begun:
        source.take(len(style.begin))
    elif not opened:
        text(space)
        return
    yield from source.skip_space()
    if (yield from Markers((style.end,)).next(source, thought, trim=True)):
        yield from source.skip_space()


def raw_thought(source: Source, style: ReasoningStyle, opened: bool, text: Callable[[str], None]) -> Steps[None]:
    """As read_thought, all of it as text, with its tags."""
    text((yield from source.skip_space()))
    begun = yield from source.follows(style.begin)
    if not begun and not opened:
        return
    if begun:
        text(source.take(len(style.begin)))
    text((yield from Markers((style.end,)).next(source, text)))
