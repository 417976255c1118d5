"""Grammars run over a vocabulary, by llguidance: compiled once, masks computed by threads of their own while the model runs.

Knows token bytes and grammars; must not know logits, sampling settings or requests. A grammar comes from a request and is not trusted:
its size, its compilation and each of its steps are bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, ref

import numpy as np

from ggrun.engine.constraint import ConstraintError
from ggrun.engine.grammars import GRAMMARS, sentence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggrun.text import Tokenizer

_KEPT: Final = 16  # compiled grammars
_WORKERS: Final = 2  # threads that compute masks, and as many that compile
_SECONDS: Final = 5  # that a compilation or a mask may take; mostly they take a thousandth of one
_MARK: Final = b"\xff"  # begins a special token for llguidance; no text contains it


class GrammarConstraint:
    """A `Constraint` that a matcher of llguidance follows. ends: the bits of tokens that end a generation; shown: of them in masks."""

    def __init__(self, matcher: Any, ends: NDArray[np.uint32], shown: NDArray[np.uint32]) -> None:
        self.done = False
        self._matcher = matcher
        self._ends = ends
        self._shown = shown
        self._words = np.zeros(len(ends), np.uint32)
        self._pending: Future[None] = _workers().submit(self._compute)

    def mask(self) -> NDArray[np.uint32]:
        try:
            self._pending.result(_SECONDS)
        except TimeoutError:
            raise self._failure(f"one step of it took more than {_SECONDS} seconds") from None
        return self._words

    def accept(self, id: int) -> None:
        self._pending.result()
        if not self._matcher.consume_token(id):
            raise self._failure(f"token {id} does not follow it")
        self.done = self._matcher.is_stopped()
        if self.done:
            self._words[:] = self._shown
        else:
            self._pending = _workers().submit(self._compute)

    def copy(self) -> GrammarConstraint:
        self._pending.result()
        return GrammarConstraint(self._matcher.deep_copy(), self._ends, self._shown)

    def _compute(self) -> None:
        matcher, words = self._matcher, self._words
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            raise self._failure("it failed")
        self.done = not (words & ~self._ends).any()
        words &= ~self._ends | self._shown
        if self.done and not matcher.is_accepting():
            raise ConstraintError("the answer cannot follow its grammar or schema: the vocabulary has no token for what must come next")

    def _failure(self, otherwise: str) -> ConstraintError:
        return ConstraintError(f"the answer cannot follow its grammar or schema: {sentence(self._matcher.get_error()) or otherwise}")


class Guide:
    """A vocabulary as llguidance needs it, and the grammars compiled for it. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import llguidance

        vocabulary = _Vocabulary(tokenizer)
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=vocabulary.ends)
        bits = np.zeros(-(-len(vocabulary.tokens) // 32) * 32, np.uint8)
        bits[vocabulary.ends] = 1
        self._ends = np.packbits(bits, bitorder="little").view(np.uint32)
        self._shown = self._ends if tokenizer.end_of_generation else np.zeros_like(self._ends)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def begin(self, kind: str, value: Any) -> GrammarConstraint:
        """A constraint at its beginning. ConstraintError for a value that cannot be used."""
        grammar = _in_time(lambda: GRAMMARS[kind](value), "grammar")
        with self._lock:
            matcher = self._compiled.get(grammar.text)
            if matcher is not None:
                self._compiled.move_to_end(grammar.text)
        if matcher is None:
            matcher = _in_time(lambda: grammar.compile(self._tokenizer), grammar.noun)
            with self._lock:
                self._compiled[grammar.text] = matcher
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        with self._lock:
            return GrammarConstraint(matcher.deep_copy(), self._ends, self._shown)


def _in_time(compile: Callable[[], Any], noun: str) -> Any:
    """What `compile` returns. ConstraintError when it takes too long; what it began goes on unseen, since nothing can stop it."""
    result: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            result.put(compile())
        except BaseException as error:
            result.put(error)
        finally:
            _compiling.release()

    late = ConstraintError(f"the {noun} is too complex: it could not be made ready in {_SECONDS} seconds")
    if not _compiling.acquire(timeout=_SECONDS):
        raise late
    threading.Thread(target=run, name="ggrun-grammar", daemon=True).start()
    try:
        made = result.get(timeout=_SECONDS)
    except Empty:
        raise late from None
    if isinstance(made, BaseException):
        raise made
    return made


class _Vocabulary:
    """What llguidance asks of a tokenizer. A vocabulary without an end of generation gets one token more, which no mask shows."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = ref(tokenizer)  # whose guide goes when it goes
        ends = sorted(tokenizer.end_of_generation)
        special = {id_ for id_ in range(tokenizer.n_vocab) if tokenizer.is_special(id_)}.union(ends)
        texts = map(tokenizer.token_bytes, range(tokenizer.n_vocab))
        self.tokens = [b"" if text.startswith(_MARK) else text for text in texts]
        if not ends:
            ends = [len(self.tokens)]
            special.add(ends[0])
            self.tokens.append(b"<end>")
        self.ends = ends
        self.special_token_ids = sorted(special)
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: bytes | str) -> list[int]:
        tokenizer = self._tokenizer()
        return tokenizer.encode_part(text.decode(errors="replace") if isinstance(text, bytes) else text) if tokenizer else []


_guides: WeakKeyDictionary[Tokenizer, Guide] = WeakKeyDictionary()
_guides_lock = threading.Lock()


_compiling = threading.BoundedSemaphore(_WORKERS)


def guide_for(tokenizer: Tokenizer) -> Guide:
    """The guide of a tokenizer; made on first use, in under a second at 150,000 tokens, and kept as long as the tokenizer."""
    with _guides_lock:
        guide = _guides.get(tokenizer)
        if guide is None:
            guide = _guides[tokenizer] = Guide(tokenizer)
        return guide


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WORKERS, thread_name_prefix="ggrun-mask")
