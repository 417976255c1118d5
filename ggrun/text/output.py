"""A model's output, parsed as it arrives: text, thoughts and tool calls.

    style = output_style(template)                       # once a model
    parser = OutputParser(style, tools, prompt=rendered.text)
    for piece in pieces: deltas = parser.push(piece)
    deltas = parser.finish()

The text must hold the markers of the style, many of which are special tokens that are not shown: generate with
`shown=style.shown_ids(tokenizer)`. Knows how thoughts and calls follow each other; their formats are in reasoning, channels and tool_calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggrun.text.channels import read_channels
from ggrun.text.deltas import CallDelta, Delta, TextDelta, ThoughtDelta
from ggrun.text.reasoning import ReasoningFormat, ReasoningStyle, raw_thought, read_thought, reasoning_of
from ggrun.text.source import Markers, Source, Steps
from ggrun.text.tool_calls.derive import formats_for
from ggrun.text.tool_calls.formats import CallFormat
from ggrun.text.tool_calls.reading import CallReader

if TYPE_CHECKING:
    from ggrun.text.template import ChatTemplate
    from ggrun.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class OutputStyle:
    """reasoning: how thoughts are marked. calls: formats of tool calls; the first is the one calls are asked for and forced in."""

    reasoning: ReasoningStyle
    calls: tuple[CallFormat, ...]

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts the parser must see."""
        return tuple(dict.fromkeys((*self.reasoning.markers, *(text for row in self.calls for text in row.markers))))

    def shown_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Special tokens that must be shown, so that the parser sees them: those that are a marker or part of one."""
        found = set()
        for marker in self.markers:
            found |= {part for part in tokenizer.split_special(marker) if isinstance(part, int)}
        return frozenset(found)


def output_style(template: ChatTemplate) -> OutputStyle:
    """How a template's model marks thoughts and calls. Renders the template a few times: keep the result."""
    return OutputStyle(reasoning_of(template), formats_for(template))


class OutputParser:
    """Deltas of one output, in order; text and thoughts are never empty, ill-formed calls come as text.

    tools: those that were offered; without any, calls are text. reasoning: "none" leaves thoughts in the text, with their tags. prompt:
    the rendered prompt, which may end within a thought. begun: the end of the prompt that is the answer's own beginning. whole: a call
    comes in one piece, once it is complete, and is never broken.
    """

    def __init__(
        self,
        style: OutputStyle,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        reasoning: ReasoningFormat = "auto",
        prompt: str = "",
        begun: str = "",
        whole: bool = False,
    ) -> None:
        self._style = style
        self._raw_thoughts = reasoning == "none"
        opened = style.reasoning.opened_by(prompt.removesuffix(begun)) or begun.lstrip().startswith(style.reasoning.begin)
        self._opened = opened and style.reasoning.end not in begun
        self._past_thought = bool(begun.strip()) and not self._opened
        self._out: list[Delta] = []
        self._reader = CallReader(style.calls if tools else (), tools, self._out.append, whole)
        self._source = Source()
        self._steps = self._run()
        next(self._steps, None)

    @property
    def n_calls(self) -> int:
        """Complete calls so far. Whoever allows only one ends the generation at the first."""
        return self._reader.n_done

    def push(self, text: str) -> list[Delta]:
        """What became certain with this text."""
        if text and not self._source.ended:
            self._source.feed(text)
            next(self._steps, None)
        return self._taken()

    def finish(self) -> list[Delta]:
        """What was held back, at the end of the output."""
        if not self._source.ended:
            self._source.ended = True
            next(self._steps, None)
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas = _joined(self._out)
        self._out.clear()
        return deltas

    def _text(self, text: str) -> None:
        if text:
            self._out.append(TextDelta(text))

    def _thought(self, text: str) -> None:
        if text:
            self._out.append(ThoughtDelta(text))

    def _run(self) -> Steps[None]:
        source, style = self._source, self._style.reasoning
        if style.channels:
            thought = None if self._raw_thoughts else self._thought
            yield from read_channels(source, thought, self._text, self._reader.read_arguments if self._reader.markers else None)
            return
        if self._past_thought:
            pass
        elif self._raw_thoughts:
            yield from raw_thought(source, style, self._opened, self._text)
        else:
            yield from read_thought(source, style, self._opened, self._thought, self._text)
        while (yield from self._reader.read_bare(source)):
            pass
        markers = Markers((*self._reader.markers, *style.dropped))
        while marker := (yield from markers.next(source, self._text, trim=bool(markers.texts))):
            yield from self._reader.read(source, marker, markers.trimmed)
            if self._reader.n_done:
                yield from source.skip_space()


def _joined(deltas: list[Delta]) -> list[Delta]:
    """Neighbours that say one thing as one."""
    joined: list[Delta] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
            joined[-1] = TextDelta(last.text + delta.text)
        elif isinstance(delta, ThoughtDelta) and isinstance(last, ThoughtDelta):
            joined[-1] = ThoughtDelta(last.text + delta.text)
        elif isinstance(delta, CallDelta) and isinstance(last, CallDelta) and last.index == delta.index:
            joined[-1] = CallDelta(last.index, last.id, last.name, last.arguments + delta.arguments, delta.state)
        elif not isinstance(delta, TextDelta) or delta.text:
            joined.append(delta)
    return joined
