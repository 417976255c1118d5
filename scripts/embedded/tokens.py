"""The tokenizer: a byte-level BPE trained on the model's own text, and conversations as token ids with a mask of what is learned.

Knows: the ChatML form. Must not know: where the text comes from, or tensors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .dialogue import Dialogue, Turn

VOCABULARY = 3072
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, START, END = range(3)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = (
    "You are a helpful assistant.", "You answer questions about Python.", "You are ggrun.", "Be brief.", "You are a helpful Python expert.",
    "Answer in one sentence.", "You are a concise assistant that knows Python's standard library.", "You are a test.", "Answer the user.",
    "Be polite and precise.",
)  # fmt: skip


class Sample(NamedTuple):
    """Token ids of one conversation; `learn[i]` is 1 where ids[i] is to be predicted."""

    ids: list[int]
    learn: list[int]


def train_tokenizer(dialogue: Dialogue, seed: int) -> Tokenizer:
    """A byte-level BPE in the form llama.cpp calls "gpt-2" (the GPT-2 splitting expression, no prefix space)."""
    r = random.Random(seed)
    text = [part for item in dialogue.items for part in (item.answer(), item.answer(), item.text, dialogue.ask(item, r).question)]
    text += [part for _ in range(6000) for part in dialogue.turn(r)]
    text += [r.choice(dialogue.paragraphs) for _ in range(300)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


class Encoder:
    """Turns and conversations as samples."""

    def __init__(self, tokenizer: Tokenizer, dialogue: Dialogue) -> None:
        self.tokenizer, self.dialogue = tokenizer, dialogue
        self._newline = self.text("\n")
        self._user, self._system = [START, *self.text("user\n")], [START, *self.text("system\n")]
        self._assistant = [START, *self.text("assistant\n")]

    def text(self, text: str) -> list[int]:
        """The ids of plain text (no special token is recognised in it)."""
        return list(self.tokenizer.encode(text).ids)

    def system(self, text: str) -> list[int]:
        return [*self._system, *self.text(text), END, *self._newline]

    def prompt(self, question: str) -> list[int]:
        """A user's message up to where the answer begins."""
        return [*self._user, *self.text(question), END, *self._newline, *self._assistant]

    def turn(self, turn: Turn, learn: bool = True) -> Sample:
        prompt, answer = self.prompt(turn.question), [*self.text(turn.answer), END]
        newline = self._newline
        return Sample(prompt + answer + newline, [0] * len(prompt) + [int(learn)] * len(answer) + [0] * len(newline))

    def conversation(self, r: random.Random, turns: int) -> Sample:
        """A short conversation of `turns` turns, at times with a system message or without any template."""
        if r.random() < 0.02:
            turn = self.dialogue.turn(r)
            question, answer = self.text(turn.question + "\n"), [*self.text(turn.answer), END]
            return Sample(question + answer, [0] * len(question) + [1] * len(answer))
        ids = self.system(r.choice(SYSTEM)) if r.random() < 0.12 else []
        learn = [0] * len(ids)
        for _ in range(turns):
            turn = self.dialogue.turn(r)
            if r.random() < 0.01:
                turn = Turn(self.dialogue.filler(r)[:400] + "\n" + turn.question, turn.answer)
            sample = self.turn(turn)
            ids, learn = ids + sample.ids, learn + sample.learn
        return Sample(ids, learn)

    def long(self, r: random.Random, length: int) -> Sample:
        """A conversation of exactly `length` tokens: many turns, some messages with prose, some answers that are not ours."""
        sample = self.conversation(r, 1)
        ids, learn, asked = list(sample.ids), list(sample.learn), [self.dialogue.turn(r)]
        if r.random() < 0.25:  # one long message first
            count = r.randrange(length // 8, length * 3 // 4)
            prose: list[int] = []
            while len(prose) < count:
                prose += self.text(self.dialogue.filler(r) + "\n")
            ids, learn = [START, *self.text("user\n"), *prose[:count]], [0] * (count + 1 + len(self.text("user\n")))
            last = self.turn(asked[0])
            ids, learn = ids + self._newline + last.ids[len(self._user) :], learn + [0] * len(self._newline) + last.learn[len(self._user) :]
        while len(ids) < length:
            turn = r.choice(asked) if r.random() < 0.04 else self.dialogue.turn(r)
            asked.append(turn)
            u = r.random()
            if u < 0.03:
                turn = Turn(self.dialogue.filler(r)[:300] + "\n" + turn.question, turn.answer)
            piece = self.turn(Turn(turn.question, self.dialogue.filler(r)[:200]), learn=False) if 0.03 < u < 0.06 else self.turn(turn)
            ids, learn = ids + piece.ids, learn + piece.learn
        return Sample(ids[:length], learn[:length])


def batches(encoder: Encoder, seed: int, tokens: int) -> Iterator[Sequence[Sample]]:
    """Batches of about `tokens` tokens of similar length, for ever: mostly short conversations, some of 512, 2,048 and 4,096 tokens."""
    r = random.Random(seed)
    while True:
        pool = sorted(
            (encoder.conversation(r, r.choices((1, 2, 3), (0.86, 0.09, 0.05))[0]) for _ in range(2400)), key=lambda sample: len(sample.ids)
        )
        ready: list[Sequence[Sample]] = []
        batch: list[Sample] = []
        for sample in pool:
            if batch and len(sample.ids) * (len(batch) + 1) > tokens:
                ready.append(batch)
                batch = []
            batch.append(sample)
        for length, share in ((512, 0.12), (2048, 0.08), (4096, 0.035)):
            for _ in range(max(1, round(len(ready) * share))):
                ready.append([encoder.long(r, length + 1) for _ in range(max(1, tokens // length))])
        r.shuffle(ready)
        yield from ready
