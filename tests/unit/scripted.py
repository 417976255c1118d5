"""A model that says what a test tells it to: the embedded model's tokenizer and template, no weights.

    model = scripted("fine <b>thanks</b>", chunks=3)      # an OpenModel as far as `ggrun.server.answering` looks
    shelf = OneModel(model)
"""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from ggrun.engine.generation import Finished, Generation, TokenEvent
from ggrun.engine.sampling import SampledToken
from ggrun.engine.stops import StopMatcher
from ggrun.gguf import open_gguf
from ggrun.server.settings import Settings
from ggrun.server.shelf import Defaults, OpenModel
from ggrun.text import ChatTemplate, Tokenizer, chat_template, load_tokenizer
from tests.conftest import EMBEDDED


@cache
def tokenizer() -> Tokenizer:
    with open_gguf(EMBEDDED) as file:
        return load_tokenizer(dict(file.metadata))


@cache
def template() -> ChatTemplate:
    with open_gguf(EMBEDDED) as file:
        return chat_template(file.metadata, tokenizer())


class ScriptedEngine:
    """Each submitted prompt gets the next of `answers` (an exception fails it), a token at a time from another thread.

    hold: a generation waits for this event before its first token. endless: the answer is repeated until it is cancelled.
    """

    def __init__(self, answers: Sequence[str | Exception], n_ctx: int = 1000, source: str | None = None, endless: bool = False) -> None:
        self.answers, self.n_ctx, self.endless = list(answers), n_ctx, endless
        self.tokenizer = tokenizer()
        self.chat_template = ChatTemplate(source) if source else template()
        self.spec = SimpleNamespace(n_vocab=self.tokenizer.n_vocab, n_ctx_train=4096)
        self.submitted: list[dict[str, Any]] = []
        self.generations: list[Generation] = []
        self.hold = threading.Event()
        self.hold.set()

    def submit(self, prompt_ids: Sequence[int], sampling: Any = None, *, listener: Callable[..., None], **options: Any) -> Generation:
        generation = Generation(list(prompt_ids), max(sampling.seed, 0), lambda generation: None)
        answer = self.answers[len(self.submitted) % len(self.answers)]
        self.submitted.append({"ids": list(prompt_ids), "sampling": sampling, **options})
        self.generations.append(generation)
        if options.get("prompt_logprobs"):
            n_top = max(0, options["n_top"])
            generation.prompt_scores = [SampledToken(i, -float(at), ((i, -float(at)),)[:n_top]) for at, i in enumerate(prompt_ids) if at]
        threading.Thread(target=self._run, args=(generation, answer, options, listener), daemon=True).start()
        return generation

    def _run(self, generation: Generation, answer: str | Exception, options: dict[str, Any], listener: Callable[..., None]) -> None:
        def put(event: Any) -> None:
            generation.events.put(event)
            listener(generation)

        self.hold.wait()
        if isinstance(answer, Exception):
            return put(answer)
        stops = StopMatcher(options["stop"])
        decoder = self.tokenizer.decoder(not options["show_special"], options["strip_space"], options["shown"])
        ids = self.tokenizer.encode(answer, add_special=False, parse_special=True)
        limit = options["n_predict"]
        generation.timings.prompt_n = len(generation.prompt_ids)
        reason = "stop"
        while not generation.cancelled:
            for id_ in ids:
                if generation.cancelled or (0 <= limit <= generation.timings.predicted_n):
                    break
                generation.timings.predicted_n += 1
                top = tuple((other % self.tokenizer.n_vocab, -0.5 - n) for n, other in enumerate(range(id_, id_ + options["n_top"])))
                put(TokenEvent(id_, stops.push(decoder.push(id_)), -0.5, top))
                if stops.found:
                    return put(Finished("stop", "", stops.found))
            if 0 <= limit <= generation.timings.predicted_n:
                reason = "length"
                break
            if not self.endless:
                break
        put(Finished("cancelled" if generation.cancelled else reason, stops.push(decoder.finish()) + stops.finish()))


class OneModel:
    """A shelf with one model, counting who uses it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.settings = Settings()
        self.n_used = 0
        self.metrics = None

    async def close(self) -> None: ...

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Any]:
        self.n_used += 1
        try:
            yield self.model
        finally:
            self.n_used -= 1


def scripted(*answers: str | Exception, sampling: dict[str, Any] | None = None, system: str | None = None, **options: Any) -> Any:
    """An open model that gives these answers in turn."""
    defaults = Defaults(sampling=sampling or {}, system=system)
    return OpenModel("scripted", EMBEDDED, ScriptedEngine(answers, **options), 1, defaults)  # type: ignore[arg-type]
