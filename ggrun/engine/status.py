"""What an engine is doing, as figures of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SlotState = Literal["idle", "prompt", "answer"]


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One slot. n_tokens of at most n_ctx are in its context; n_prompt_done of the n_prompt of the prompt are computed or were found."""

    id: int
    state: SlotState
    n_ctx: int
    n_tokens: int = 0
    n_prompt: int = 0
    n_prompt_done: int = 0
    n_predicted: int = 0


@dataclass(slots=True)
class Totals:
    """Sums since the engine was opened. *_seconds: of the steps that computed any such token; a step may count in both."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    predicted_tokens: int = 0
    prompt_seconds: float = 0.0
    predicted_seconds: float = 0.0
    n_steps: int = 0
    n_preempted: int = 0


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """kv_*: tokens of whole blocks: all there are, held by sequences, free but still reusable. From prompt_tokens on: as in Totals."""

    slots: tuple[SlotStatus, ...]
    n_waiting: int
    kv_tokens: int
    kv_used: int
    kv_cached: int
    prompt_tokens: int
    cached_tokens: int
    predicted_tokens: int
    prompt_seconds: float
    predicted_seconds: float
    n_steps: int
    n_preempted: int
