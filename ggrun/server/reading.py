"""What takes the text of a choice apart: pieces of answer, thought and tool calls for a chat, plain text for a completion.

Knows how a model's template marks thoughts and calls; must not know the engine or any API's shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from ggrun.server.aside import aside
from ggrun.server.task import Call, Text, Thought
from ggrun.text.deltas import CallDelta, Delta, TextDelta, ThoughtDelta
from ggrun.text.output import OutputParser, OutputStyle, output_style

if TYPE_CHECKING:
    from ggrun.text import ChatTemplate

Part = Text | Thought | Call
Marks = tuple[str, re.Pattern[bytes], bool]


class Reader(Protocol):
    """Pieces have their choice's number."""

    @property
    def done(self) -> bool:
        """Whether the answer has all it may have, so that nothing more need be generated."""
        ...

    def push(self, text: str) -> Sequence[Part]:
        """What became certain with more of the text."""
        ...

    def finish(self) -> Sequence[Part]:
        """What was held back."""
        ...


class Plain:
    """Reads a completion: all of it is text."""

    done: Final = False

    def __init__(self, choice: int) -> None:
        self._choice = choice

    def push(self, text: str) -> Sequence[Part]:
        return (Text(self._choice, text),) if text else ()

    def finish(self) -> Sequence[Part]:
        return ()


class Parsed:
    """Reads a chat's answer. parallel: whether it may have more than one call."""

    def __init__(self, choice: int, parser: OutputParser, parallel: bool) -> None:
        self._choice = choice
        self._parser = parser
        self._parallel = parallel

    @property
    def done(self) -> bool:
        return not self._parallel and self._parser.n_calls > 0

    def push(self, text: str) -> Sequence[Part]:
        return self._pieces(self._parser.push(text))

    def finish(self) -> Sequence[Part]:
        return self._pieces(self._parser.finish())

    def _pieces(self, deltas: Sequence[Delta]) -> Sequence[Part]:
        pieces = [_PIECES[type(delta)](self._choice, delta) for delta in deltas]
        if not self._parallel:  # a second call may begin in the very text that ends the first
            pieces = [piece for piece in pieces if not isinstance(piece, Call) or piece.index == 0]
        return pieces


_PIECES: Final[Mapping[type, Callable[[int, Any], Part]]] = {
    TextDelta: lambda choice, delta: Text(choice, delta.text),
    ThoughtDelta: lambda choice, delta: Thought(choice, delta.text),
    CallDelta: lambda choice, delta: Call(choice, delta.index, delta.arguments, delta.id, delta.name, delta.state),
}


def thought_marks(template: ChatTemplate, style: OutputStyle, prompt: str, wanted: bool) -> Marks | None:
    """The marks around the thought that an answer to this prompt may begin with, and whether the prompt has the first; None: no thought.

    wanted: whether a thought that the prompt does not begin is welcome.
    """
    reasoning = style.reasoning
    if reasoning.channels:
        return (FIRST_CHANNEL, LAST_CHANNEL, False) if wanted else None
    end = re.compile(re.escape(reasoning.end.encode()))
    if reasoning.opened_by(prompt):
        return reasoning.begin, end, True
    known = reasoning.name == "derived" or all(any(text in source for source in template.sources) for text in reasoning.signature)
    over = prompt.rstrip().endswith(reasoning.end)
    return (reasoning.begin, end, False) if wanted and known and not over else None


FIRST_CHANNEL: Final = "<|channel|>"  # of gpt-oss; its answer itself comes after the other
LAST_CHANNEL: Final = re.compile(rb"<\|channel\|>final[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")


_styles: WeakKeyDictionary[ChatTemplate, OutputStyle] = WeakKeyDictionary()


async def style_of(template: ChatTemplate) -> OutputStyle:
    """How a template's model marks thoughts and calls. Renders the template a few times, at its first use."""
    style = _styles.get(template)
    if style is None:
        style = _styles[template] = await aside(lambda: output_style(template))
    return style
