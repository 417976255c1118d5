"""Results as `ggrun bench` would have measured them."""

from dataclasses import replace

from ggrun.bench.matrix import Case, Settings
from ggrun.bench.result import Entry, ModelInfo, Result

MODEL = ModelInfo("models/it's.gguf", "llama 1B Q4_K - Medium", 807_000_000, 1_235_814_432)


def result(case: Case, *samples_ns: int, model: ModelInfo = MODEL, n_threads: int = 2, **settings: object) -> Result:
    entry = Entry(model, replace(Settings(), **settings), case, n_threads)
    return Result(entry, "2026-11-21T10:42:33Z", samples_ns or (10**9, 2 * 10**9))
