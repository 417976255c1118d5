"""What a person sees beside the text itself: notes, progress, timings, all on stderr, so that stdout holds the answer and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]

STAGES = {
    "compile": "compiling the kernels for this CPU (first run only)",
    "compile for the GPU": "compiling the kernels for the GPU (first run only)",
    "load": "loading the model",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """stderr as a place for notes. color "auto" colours a terminal that has not set NO_COLOR."""

    def __init__(self, color: Literal["on", "off", "auto"] = "auto") -> None:
        self.terminal = sys.stderr.isatty()
        self.color = color == "on" or (color == "auto" and self.terminal and not os.environ.get("NO_COLOR"))
        self._console: Console | None = None
        self._told: set[str] = set()

    @property
    def console(self) -> Console:
        """The rich console behind it, made when first needed."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, no_color=not self.color, force_terminal=self.color or None, highlight=False)
        return self._console

    def note(self, text: str) -> None:
        """One sentence, dim where there is colour."""
        print(f"\x1b[2m{text}\x1b[0m" if self.color else text, file=sys.stderr, flush=True)

    def once(self, text: str) -> None:
        """A note that is not repeated while this screen lasts."""
        if text not in self._told:
            self._told.add(text)
            self.note(text)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback (stage, done, total) for long work: bars on a terminal, elsewhere one line for what takes minutes."""
        if not self.terminal:

            def line(stage: str, done: int, total: int) -> None:
                if stage != "load":
                    self.once(STAGES[stage] + " ...")

            yield line
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn()
        with Bars(*columns, console=self.console, transient=True) as bars:
            tasks = {}

            def bar(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(STAGES.get(stage, stage), amount="")
                bars.update(tasks[stage], completed=done, total=total, amount=amount(done, total), visible=done < total)

            yield bar


class Live:
    """One line on a terminal that is written over; elsewhere nothing. Twice a second at most: it must not disturb what it tells of."""

    INTERVAL = 0.5  # seconds

    def __init__(self, screen: Screen) -> None:
        self._terminal = screen.terminal
        self._next = 0.0

    def show(self, text: Callable[[], str]) -> None:
        """Write over the line what `text` says, unless it was written just now."""
        if self._terminal and (now := monotonic()) >= self._next:
            self._next = now + self.INTERVAL
            width = os.get_terminal_size(2).columns or 80  # some terminals do not know theirs
            sys.stderr.write(f"\r\x1b[K{text()[: width - 1]}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Empty the line, so that something else can be written; the next show() is not held back."""
        self._next = 0.0
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def amount(done: int, total: int) -> str:
    """3/21 for things, 120/640 MiB for bytes; whatever is counted in millions is bytes."""
    return f"{done >> 20}/{total >> 20} MiB" if total >= 1 << 20 else f"{done}/{total}"


class Writer:
    """stdout for the model's words: flushed piece by piece; on a terminal, control characters are shown instead of obeyed."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._last = "\n"

    def write(self, text: str) -> None:
        if text:
            if self.terminal:
                text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r", ""))
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]

    def end_line(self) -> None:
        """Start a new line unless the text already did."""
        if self._last != "\n":
            self.write("\n")
