"""What is measured: cases, the settings they run under, and how lists of them are written on the command line. Opens nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from ggrun.errors import GgrunError

LARGEST = 1 << 24  # tokens, threads, layers: what no flag exceeds
MOST = 10_000  # numbers one range may stand for


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt of n_prompt tokens, then n_gen steps of one token for each of n_parallel sequences, behind n_depth tokens of context.

    Only generation runs in parallel: n_prompt is 0 where n_parallel is not 1.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """pp512, tg128, pp512+tg128, tg128 x8 (eight sequences), pp512 @ d4096 (behind 4096 tokens)."""
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        several = f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return "+".join(parts) + several + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens of context one sequence comes to."""
        return self.n_depth + self.n_prompt + self.n_gen

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed, of all sequences together."""
        return self.n_prompt + self.n_gen * self.n_parallel


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is opened for a case; the names are llama-bench's. n_threads None: what models.toml says, or every core."""

    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    n_cpu_moe: int = 0
    load_mode: str = "auto"
    n_gpu_layers: str = "auto"  # as -ngl says it; how many that are, the plan knows


def numbers(flag: str, texts: Sequence[str], least: int) -> tuple[int, ...]:
    """The numbers that "512", "512,1024", "1-4", "0-4096+1024" and "64-1024*2" stand for, in order. Raises GgrunError naming the flag."""
    return tuple(n for text in texts for part in text.split(",") for n in _range(flag, part.strip(), least))


def pairs(flag: str, texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(512, 128) for each "512,128"."""
    result = []
    for text in texts:
        if not (found := re.fullmatch(r"\s*(\d{1,18})\s*,\s*(\d{1,18})\s*", text)):
            raise GgrunError(f"{flag} {text!r} is not a prompt's and an answer's length, such as 512,128")
        result.append((_within(flag, int(found[1]), 1), _within(flag, int(found[2]), 1)))
    return tuple(result)


def cases(
    n_prompt: Sequence[int],
    n_gen: Sequence[int],
    n_prompt_gen: Sequence[tuple[int, int]],
    n_depth: Sequence[int],
    n_parallel: Sequence[int],
) -> tuple[Case, ...]:
    """At each depth the prompts, then the answers at each number of sequences, then both together; a length of 0 is left out."""
    return tuple(
        case
        for depth in n_depth
        for case in (
            *(Case(n, 0, depth) for n in n_prompt if n),
            *(Case(0, n, depth, parallel) for n in n_gen if n for parallel in n_parallel),
            *(Case(prompt, gen, depth) for prompt, gen in n_prompt_gen),
        )
    )


def combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[Settings]:
    """Settings for every combination; values: of some fields of Settings the ones to try, the last field changing fastest."""
    names = [field.name for field in fields(Settings) if values.get(field.name)]
    for chosen in product(*(values[name] for name in names)):
        yield Settings(**dict(zip(names, chosen)))


def _range(flag: str, text: str, least: int) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18})(?:([+*])(\d{1,18}))?)?", text)
    if not found:
        raise GgrunError(f"{flag} {text!r} is neither a number nor a range such as 1-4, 0-4096+1024 or 64-1024*2")
    first = _within(flag, int(found[1]), least)
    last = first if found[2] is None else _within(flag, int(found[2]), least)
    multiply, step = found[3] == "*", int(found[4] or 1)
    if last < first:
        raise GgrunError(f"{flag} {text}: the range ends before it begins")
    if step < 1 + multiply or (multiply and not first):
        raise GgrunError(f"{flag} {text}: the range never comes to its end")
    result = []
    while first <= last:
        result.append(first)
        first = first * step if multiply else first + step
        if len(result) > MOST:
            raise GgrunError(f"{flag} {text} stands for more than {MOST} numbers")
    return tuple(result)


def _within(flag: str, number: int, least: int) -> int:
    if not least <= number <= LARGEST:
        raise GgrunError(f"{flag} {number} is out of range; it takes {least} to {LARGEST}")
    return number
