"""One opened model, timed case by case. Knows executors and batches, not what becomes of the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from ggrun.bench.matrix import Case
from ggrun.engine.loading import Options, Planned, load, plan_model
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.plan.planner import DoesNotFit
from ggrun.runtime.executor import Batch, Executor, Progress

MOST_CONTEXT = 1 << 30  # tokens of all sequences
Watch = Callable[[str, int, int], None]  # (what is being done, tokens so far, nanoseconds so far)


def options_for(options: Options, cases: Sequence[Case]) -> Options:
    """The options with a context in which each of the cases has room. Raises DoesNotFit when that is beyond any machine."""
    n_parallel, longest = max(case.n_parallel for case in cases), max(case.n_ctx for case in cases)
    if n_parallel * longest > MOST_CONTEXT:
        raise DoesNotFit(f"{n_parallel} x {longest} tokens of context are more than any machine holds")
    return replace(options, n_parallel=n_parallel, n_ctx=n_parallel * longest)


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that run in one session, and the threads and GPUs that will compute them; n_gpu_layers as -ngl counts."""

    cases: tuple[Case, ...]
    n_threads: int
    n_gpu_layers: int = 0
    gpus: str = ""


def fitting(path: Path | None, options: Options, cases: Sequence[Case]) -> list[Group]:
    """The cases in groups that are opened together: all of them where that fits, else one by one. Loads nothing.

    Raises DoesNotFit naming the first case that does not fit even alone.
    """
    try:
        return [_group(path, options, cases)]
    except DoesNotFit:
        return [_alone(path, options, case) for case in cases]


def _group(path: Path | None, options: Options, cases: Sequence[Case]) -> Group:
    planned = plan_model(path, options_for(options, cases))
    planned.file.close()
    plan = planned.plan
    used = {segment.device for segment in plan.segments}
    gpus = ", ".join(room.what for room in plan.rooms if room.device in used and room.device != "CPU")
    return Group(tuple(cases), planned.n_threads, plan.choice.n_gpu_layers if plan.choice else 0, gpus)


def _alone(path: Path | None, options: Options, case: Case) -> Group:
    try:
        return _group(path, options, [case])
    except DoesNotFit as error:
        raise DoesNotFit(f"{case.name} does not fit: {error.problem}") from None


@contextmanager
def opened(path: Path | None, options: Options, cases: Sequence[Case], progress: Progress | None) -> Iterator[Session]:
    """A session in which the cases can run; all it took is freed at the end."""
    chosen = options_for(options, cases)
    planned = plan_model(path, chosen)
    try:
        planned, executor = load(planned, chosen, progress)
        try:
            yield Session(planned, executor, options.n_batch)
        finally:
            executor.close()
    finally:
        planned.file.close()


class Session:
    """Runs cases on an executor whose KV memory it divides evenly among the sequences.

    Cells once computed stay valid, whatever ran in them: the context up to a case's depth is computed once, for one sequence, and
    copied to the others, and a repetition overwrites what the one before it added.
    """

    def __init__(self, planned: Planned, executor: Executor, n_batch: int) -> None:
        self.executor = executor
        self._planned = planned
        shape = planned.plan.shape
        self._n_vocab = planned.spec.n_vocab
        self._n_batch, self._n_ubatch = n_batch, shape.n_ubatch
        n_blocks = -(-shape.n_ctx // KV_BLOCK_TOKENS)
        self._tables = 1 + np.arange(shape.n_seqs * n_blocks, dtype=np.int32).reshape(shape.n_seqs, n_blocks)  # 0 is the null block
        self._n_filled = [0] * shape.n_seqs  # tokens of each sequence whose cells are computed
        self._random = np.random.default_rng(0)

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about how the model was opened, and what became of it since."""
        return [*self._planned.plan.notes, *self._planned.file.notes, *self.executor.notes]

    def run(self, case: Case, repetitions: int, warm_up: bool, watch: Watch) -> list[int]:
        """Nanoseconds of each repetition. Untimed, before them: the context up to the depth, then the prompt and one step as a warm-up."""
        watch("waiting for the weights", 0, 0)
        self.executor.settle()
        self._fill(case, watch)
        if warm_up:
            watch("warming up", 0, 0)
            self._time(replace(case, n_gen=min(case.n_gen, 1)), "warming up", watch)
        return [self._time(case, f"run {number}/{repetitions}", watch) for number in range(1, repetitions + 1)]

    def _time(self, case: Case, doing: str, watch: Watch) -> int:
        """Nanoseconds of one repetition, the making of its batches included: some microseconds each."""
        n_tokens = 0
        start = perf_counter_ns()
        for batch in chain(self._prompt(0, case.n_depth, case.n_prompt, last=True), self._steps(case)):
            self.executor.run(batch)
            n_tokens += len(batch.ids)
            watch(doing, n_tokens, perf_counter_ns() - start)
        end = perf_counter_ns()
        for sequence in range(case.n_parallel):
            self._n_filled[sequence] = max(self._n_filled[sequence], case.n_ctx)
        return end - start

    def _fill(self, case: Case, watch: Watch) -> None:
        """Compute the cells of n_depth tokens of the first sequence, and copy them to the other sequences of the case."""
        depth, filled = case.n_depth, self._n_filled[0]
        start = perf_counter_ns()
        for batch in self._prompt(0, filled, max(0, depth - filled), last=False):
            self.executor.run(batch)
            self._n_filled[0] = int(batch.positions[-1]) + 1
            watch(f"filling the context, {self._n_filled[0]}/{depth}", self._n_filled[0] - filled, perf_counter_ns() - start)
        for sequence in range(1, case.n_parallel):
            have = self._n_filled[sequence]
            if have < depth:
                for block in range(have // KV_BLOCK_TOKENS, -(-depth // KV_BLOCK_TOKENS)):
                    self.executor.copy_block(int(self._tables[0, block]), int(self._tables[sequence, block]))
                self._n_filled[sequence] = depth

    def _prompt(self, sequence: int, start: int, n: int, last: bool) -> Iterator[Batch]:
        """n random tokens from a position on, -b at a time in micro-batches of -ub; `last`: the logits of the last one are wanted."""
        for at in range(0, n, self._n_batch):
            end = min(at + self._n_batch, n)
            for first in range(at, end, self._n_ubatch):
                size = min(self._n_ubatch, end - first)
                positions = np.arange(start + first, start + first + size, dtype=np.int32)
                wanted = [size - 1] if last and first + size == n else []
                yield Batch(self._ids(size), positions, np.full(size, sequence, np.int32), self._tables, np.array(wanted, np.int32))

    def _steps(self, case: Case) -> Iterator[Batch]:
        """A batch for each generated token: one token of every sequence, all their logits wanted."""
        sequences = np.arange(case.n_parallel, dtype=np.int32)
        for position in range(case.n_depth + case.n_prompt, case.n_ctx):
            positions = np.full(case.n_parallel, position, np.int32)
            yield Batch(self._ids(case.n_parallel), positions, sequences, self._tables, sequences)

    def _ids(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return self._random.integers(0, self._n_vocab, n, np.int32)
