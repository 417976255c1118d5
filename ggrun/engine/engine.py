"""Engine: open a model, submit token ids or conversations, read what comes.

What runs on callers' threads; sequences, KV blocks and the executor belong to the thread of `loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from collections.abc import Sequence as Seq
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggrun.engine.embedding import Embedding, default_pooling
from ggrun.engine.generation import Generation
from ggrun.engine.loading import Options, Planned, load, plan_model
from ggrun.engine.loop import Loop
from ggrun.engine.sampling import Sampler, Sampling
from ggrun.engine.scores import PromptScores
from ggrun.engine.sequence import Overflow, Sequence
from ggrun.engine.slots import Slots
from ggrun.engine.stops import StopMatcher
from ggrun.engine.tiers import Tiers, form_of, origin_of
from ggrun.errors import GgrunError
from ggrun.runtime.executor import Progress
from ggrun.runtime.hidden import HeadNorm
from ggrun.text import ChatTemplate, Tokenizer, chat_template, load_tokenizer

if TYPE_CHECKING:
    from ggrun.engine.budget import ThoughtBudget
    from ggrun.engine.constraint import Constraint
    from ggrun.engine.status import EngineStatus

Message = Mapping[str, object]


class ContextExceeded(GgrunError):
    """A prompt of n_prompt tokens that leaves no room in its sequence's context of n_ctx."""

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        super().__init__(f"the prompt has {n_prompt} tokens and the context holds {n_ctx}; shorten it or open the model with a larger -c")
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class Engine:
    """An opened model. Use `Engine.open`, as a context manager."""

    def __init__(self, planned: Planned, options: Options, progress: Progress | None = None, template: str | None = None) -> None:
        planned, self._executor = load(planned, options, progress)  # first: its pages fill while the vocabulary is read
        self.file, self.spec, self.plan = planned.file, planned.spec, planned.plan
        self.n_threads = planned.n_threads
        try:
            self.tokenizer: Tokenizer = load_tokenizer(self.file.metadata)
            self.chat_template: ChatTemplate = chat_template(self.file.metadata, self.tokenizer, template)
        except BaseException:
            self._executor.close()
            raise
        self._form = form_of(self.plan.program, self.plan.shape)
        try:
            tiers = Tiers.open(self.file, self.plan, options.disk_cache, options.disk_cache_mib)
        except BaseException:
            self._executor.close()
            raise
        self._tier_notes, self._disk = tiers.notes, tiers.disk
        norm = HeadNorm(self.plan.program, self.file.tensors)
        self._loop = Loop(self._executor, self.plan.shape, self.spec.n_vocab, options.step_ms / 1e3, norm, tiers)
        self._closed = False

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        *,
        progress: Progress | None = None,
        chat_template: str | None = None,
        **options: object,
    ) -> Engine:
        """Open a GGUF file (None: the embedded model). Options: see `loading.Options`. Raises GgrunError with a sentence.

        progress(stage, done, total) is told of "load" and, on first use, "compile". chat_template replaces the file's own.
        """
        chosen = Options(**options)  # type: ignore[arg-type]  # the names and types are checked by Options itself
        planned = plan_model(model, chosen)
        try:
            return cls(planned, chosen, progress, chat_template)
        except BaseException:
            planned.file.close()
            raise

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about how the model was opened, and what became of it since."""
        return [*self.plan.notes, *self.file.notes, *self._executor.notes, *self._tier_notes]

    def on_note(self, listener: Callable[[str], None]) -> None:
        """Tell `listener` the notes that are still to come, in whichever thread they do."""
        if self._disk:
            self._disk.on_note = listener

    @property
    def n_ctx(self) -> int:
        """Tokens one sequence may hold."""
        return self.plan.shape.n_ctx

    def submit(
        self,
        prompt_ids: Seq[int],
        sampling: Sampling | None = None,
        *,
        n_predict: int = -1,
        stop: Seq[str] = (),
        keep: int = 0,
        on_overflow: Overflow = "stop",
        show_special: bool = False,
        shown: Container[int] = (),
        strip_space: bool = False,
        n_top: int = 0,
        constraint: Constraint | None = None,
        budget: ThoughtBudget | None = None,
        truncate: bool = False,
        cache_prompt: bool = True,
        prompt_logprobs: bool = False,
        listener: Callable[[Generation], None] | None = None,
    ) -> Generation:
        """Continue token ids: up to n_predict tokens (-1: until the model ends or the context is full).

        on_overflow "shift" drops the older half of what follows the first `keep` tokens when the context is full (keep < 0: the whole
        prompt) and counts it in Generation.n_shifted. show_special: also the text of special tokens; shown: of these. strip_space: the text
        answers a chat, so drop the space that SentencePiece vocabularies put before it. n_top: how many likeliest tokens each event tells;
        -1: no log probabilities at all, which is faster. constraint: what the answer must look like (for this answer alone; see
        `constraint_for`); it is "stop"ped as soon as nothing may follow. budget: how long it may think. truncate: of a prompt that does not
        fit, drop what follows the first `keep` tokens (and the one that begins every text) until half of the rest is free, and count it in
        Generation.n_cut. cache_prompt False: compute all of the prompt anew. prompt_logprobs: tell the prompt's own tokens, too, with n_top
        likeliest ones each, in Generation.prompt_scores, and the token that ends the answer as an event; all of the prompt is computed anew
        for that, Options.n_logits of its tokens a step at most, and it must fit. listener: see Generation. Raises ContextExceeded, or
        GgrunError for ids that cannot be run.
        """
        ids = self._checked(prompt_ids, fits=prompt_logprobs or (on_overflow != "shift" and not truncate))
        sampling = sampling or Sampling()
        if n_top < -1:
            raise GgrunError(f"n_top must be at least 0, or -1 for no log probabilities, not {n_top}")
        sampler = Sampler(sampling, self.spec.n_vocab, self.tokenizer, n_top=n_top, constraint=constraint, budget=budget)
        ends = frozenset() if sampling.ignore_eos else self.tokenizer.end_of_generation
        generation = Generation(ids, sampler.seed, self._loop.cancel, listener)
        scores = PromptScores(ids, n_top) if prompt_logprobs else None
        generation.prompt_scores = scores.found if scores else []
        keep = len(ids) if keep < 0 else min(keep, len(ids))
        if truncate and ids[0] == self.tokenizer.bos_id:
            keep = max(keep, 1)
        keep = min(keep, self.n_ctx // 2)
        sequence = Sequence(
            generation,
            sampler,
            self.tokenizer.decoder(not show_special, strip_space and constraint is None, shown),  # a constraint counts every space
            StopMatcher(stop),
            ends,
            n_predict,
            keep,
            on_overflow,
            cache_prompt and scores is None,
            scores,
        )
        if len(ids) >= self.n_ctx:
            n_dropped = _cut_middle(sequence.tokens, keep, self.n_ctx)
            if truncate:
                generation.n_cut = n_dropped
            else:
                generation.n_shifted = n_dropped
        sampler.begin(sequence.tokens)
        self._loop.submit(sequence)
        return generation

    def chat_ids(self, messages: Seq[Message], tools: Seq[Message] | None = None, **variables: object) -> tuple[list[int], tuple[str, ...]]:
        """Render a conversation with the model's template and tokenize it; also what the template could not do, as sentences."""
        rendered = self.chat_template.render(messages, tools=tools, variables=variables or None)
        tokenizer = self.tokenizer
        ids = tokenizer.encode(rendered.text, add_special=False, parse_special=True)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)  # most templates write it themselves; twice would be wrong
        return ids, rendered.notes

    def chat(
        self, messages: Seq[Message], sampling: Sampling | None = None, tools: Seq[Message] | None = None, **options: object
    ) -> Generation:
        """Answer a conversation ([{"role": "user", "content": "..."}]); options as `submit`'s."""
        ids, _ = self.chat_ids(messages, tools)
        return self.submit(ids, sampling, strip_space=True, **options)  # type: ignore[arg-type]

    def complete(self, text: str, sampling: Sampling | None = None, **options: object) -> str:
        """The model's continuation of a text, all at once."""
        ids = self.tokenizer.encode(text)
        return self.submit(ids, sampling, **options).wait().text  # type: ignore[arg-type]

    def forward(self, ids: Seq[int]) -> NDArray[np.float32]:
        """Logits float32 [len(ids), n_vocab] of every position of one sequence."""
        return self._loop.forward(self._checked(ids, room=0))

    @cached_property
    def pooling(self) -> str:
        """How `embed` pools unless it is told: what the file says, or "last"."""
        return default_pooling(self.file.metadata, self.spec.architecture)

    def embed(self, ids: Seq[int], pooling: str | None = None, cancelled: Callable[[], bool] | None = None) -> NDArray[np.float32]:
        """One row for a text: the hidden rows after the last norm pooled by "mean", "last" or "cls" (None: `pooling`), float32 [n_embd].

        Not normalized. Blocks; any thread may call it, and others' tokens go on. cancelled is asked every now and then: Cancelled is
        raised within 200 ms after it said True. ContextExceeded for a text longer than the context.
        """
        return self._loop.embed(Embedding(self._checked(ids, room=0), pooling or self.pooling), cancelled)

    @cached_property
    def _slots(self) -> Slots:
        return self._loop.slots(self._form, origin_of(self.file, self._form))

    def save_slot(self, slot: int, path: str | Path) -> tuple[int, int]:
        """Write the tokens of who is in a slot, or was last, with their keys and values; returns how many tokens, and the file's bytes.

        The file is its owner's alone and appears when it is complete. GgrunError.
        """
        return self._slots.save(slot, Path(path))

    def restore_slot(self, slot: int, path: str | Path) -> tuple[int, int]:
        """Bring back what `save_slot` wrote: the next prompt that begins so finds it computed. Returns tokens and bytes.

        GgrunError for another model's file, other KV types, a damaged file, and a slot at work.
        """
        return self._slots.restore(slot, Path(path))

    def erase_slot(self, slot: int) -> int:
        """Forget what a slot holds, but for what others build on; returns how many tokens. GgrunError for a slot at work."""
        return self._slots.erase(slot)

    def status(self) -> EngineStatus:
        """What the engine is doing, from any thread; cheap."""
        return self._loop.status()

    def close(self) -> None:
        """Cancel what runs, stop the thread, free everything. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.close()
            self._executor.close()
            self.file.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _checked(self, ids: Seq[int], fits: bool = True, room: int = 1) -> list[int]:
        """The ids as a list. fits: they must, with that much room behind them."""
        tokens = [int(i) for i in ids]
        if not tokens:
            raise GgrunError("the prompt is empty: there is no token to continue from")
        if min(tokens) < 0 or max(tokens) >= self.spec.n_vocab:
            bad = next(i for i in tokens if not 0 <= i < self.spec.n_vocab)
            raise GgrunError(f"token id {bad} is outside the model's vocabulary of {self.spec.n_vocab}")
        if fits and len(tokens) + room > self.n_ctx:
            raise ContextExceeded(len(tokens), self.n_ctx)
        return tokens


def _cut_middle(tokens: list[int], keep: int, n_ctx: int) -> int:
    """Leave the first `keep` tokens and the newest that fill half of the rest of the context; returns how many were dropped."""
    n_tail = (n_ctx - keep) // 2
    n_drop = len(tokens) - keep - n_tail
    del tokens[keep : keep + n_drop]
    return n_drop
