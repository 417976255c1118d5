"""How many tokens of prompts a step may carry so that it takes about a given time, from how long steps took so far."""

from __future__ import annotations

from collections import deque
from math import inf
from statistics import median

LEAST = 16  # tokens of prompts in a step, however slow the machine is: fewer are dearer each, and the prompt would never end
CAREFUL = 0.12  # seconds of a step that must not take long, where there is no target
_AIM = 0.95  # of the target: other things happen in the process now and then
_FIRST = 64  # while nothing has been measured
_SHARE = 0.25  # what a token of a prompt takes of a step of answers, while only such steps have been measured
_RECENT = 5  # steps that count, by their median: one that something else held up changes nothing
_TELLING = 8  # tokens of prompts from which a step's time says something about them


class Pace:
    """A step takes as long as one of answers alone, and so much more for every token of a prompt.

    What a token takes grows with what lies before it and falls with the size of the step, so only recent steps count: a chunk that took
    too long makes the next one smaller, whatever the reason was.
    """

    def __init__(self, target: float) -> None:
        """target: seconds; 0: none."""
        self.target = target
        self._answers: deque[float] = deque(maxlen=3 * _RECENT)  # seconds of steps without prompts
        self._each: deque[float] = deque(maxlen=_RECENT)  # seconds of one token of a prompt

    def room(self, most: int) -> int:
        """Tokens of prompts, at most `most`, for a step that takes as long as the target; without one, as long as a careful step."""
        target = self.target or CAREFUL
        if not self._each and not self._answers:
            return min(most, _FIRST)
        left = _AIM * target - self._base()
        each = median(self._each) if self._each else _SHARE * self._base()
        return max(min(most, LEAST), min(most, int(left / each)))

    def seconds(self, n_prompt: int) -> float:
        """How long a step with n_prompt tokens of prompts will take; infinite while that is not known."""
        if n_prompt:
            return self._base() + n_prompt * median(self._each) if self._each else inf
        return self._base() if self._answers else inf

    def note(self, n_prompt: int, seconds: float) -> None:
        """A step with n_prompt tokens of prompts took so long."""
        if not n_prompt:
            self._answers.append(seconds)
        elif n_prompt >= _TELLING:
            self._each.append(max(seconds - self._base(), 0.1 * seconds) / n_prompt)

    def _base(self) -> float:
        return median(self._answers) if self._answers else 0.0
