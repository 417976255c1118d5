"""Scores of a model in torch: exact answers under teacher forcing (equal to greedy decoding), refusals, answers after long conversations.

Knows: Model, Encoder. Must not know: GGUF or ggrun's engine (scripts/eval_embedded.py asks that one).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from .dialogue import Turn
from .model import Model
from .tokens import Encoder, Sample


def tensors(batch: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids[batch, length], flat positions to predict from, the ids to predict) of samples of any length, padded."""
    length = max(len(sample.ids) for sample in batch) - 1
    ids = torch.tensor([sample.ids[:-1] + [0] * (length + 1 - len(sample.ids)) for sample in batch])
    target = torch.tensor([sample.ids[1:] + [0] * (length + 1 - len(sample.ids)) for sample in batch])
    learn = torch.tensor([sample.learn[1:] + [0] * (length + 1 - len(sample.learn)) for sample in batch])
    wanted = learn.flatten().nonzero()[:, 0]
    return ids, wanted, target.flatten()[wanted]


@torch.no_grad()
def exact(model: Model, samples: Sequence[Sample]) -> float:
    """Share of samples whose learned tokens are all the greedy choice."""
    ordered, right = sorted(samples, key=lambda sample: len(sample.ids)), 0
    for start in range(0, len(ordered), 16):
        batch = ordered[start : start + 16]
        ids, wanted, target = tensors(batch)
        good = model(ids, wanted).argmax(-1) == target
        rows = wanted // ids.shape[1]
        for row in range(len(batch)):
            right += bool(good[rows == row].all())
    return right / len(ordered)


def questions(encoder: Encoder, seed: int, count: int) -> list[Sample]:
    """Questions about the hand-written items from the grammar; the weights never saw these very sentences' seed."""
    r, d = random.Random(seed), encoder.dialogue
    popular = [item for item in d.items if item.weight > 2]
    return [encoder.turn(d.ask(r.choice(popular), r)) for _ in range(count)]


def made_up(encoder: Encoder, seed: int, count: int) -> list[Sample]:
    r = random.Random(seed)
    return [encoder.turn(encoder.dialogue.invented(r)) for _ in range(count)]


def after_history(encoder: Encoder, seed: int, count: int, length: int) -> list[Sample]:
    """A question after `length` tokens of other conversation; only its own answer counts."""
    r, samples = random.Random(seed), []
    for question in questions(encoder, seed, count):
        history: list[int] = []
        while len(history) < length:
            history += encoder.turn(encoder.dialogue.turn(r)).ids
        samples.append(Sample(history + question.ids, [0] * len(history) + question.learn))
    return samples


def rows(encoder: Encoder, turns: Sequence[Turn]) -> list[Sample]:
    return [encoder.turn(turn) for turn in turns]
