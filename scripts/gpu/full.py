"""The contract on hardware: a context filled to its last token, and the card's memory beside the ledger's."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from ggrun.engine import gpus
from ggrun.engine.loading import Options, load, plan_model
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.plan.pins import read_pins
from ggrun.plan.planner import Plan
from ggrun.runtime.cuda.driver import devices
from ggrun.runtime.cuda.probe import Context
from ggrun.runtime.executor import Batch, Executor

ON_GPU = ("weights", "kv", "scratch", "stream")


def fill(path: Path, n_ctx: int, n_gpu_layers: str, vram: str | None) -> list[str]:
    """Lines of a report. GgrunError when it does not fit; AssertionError when memory is not what the ledger says."""
    pins = read_pins(n_gpu_layers=n_gpu_layers, **({"vram_budget": vram} if vram else {}))
    options = Options(n_ctx=n_ctx, placement=pins)
    observer = Context(devices()[0])
    try:
        start, _ = observer.memory()
        planned, executor = load(plan_model(path, options), options, None)
        with planned.file:
            try:
                lines = _filled(planned.plan, executor, observer, start)
            finally:
                executor.close()
        gpus.found.cache_clear()
        return lines
    finally:
        observer.close()


def _filled(plan: Plan, executor: Executor, observer: Context, start: int) -> list[str]:
    shape, listed = plan.shape, sum(plan.ledger.total("CUDA0", purpose) for purpose in ON_GPU)
    ready, _ = observer.memory()
    table = np.arange(1, shape.n_kv_blocks, dtype=np.int32)[None]
    begin = perf_counter()
    n = shape.n_ctx
    for first in range(0, n - 1, shape.n_ubatch):
        size = min(shape.n_ubatch, n - 1 - first)
        executor.run(_batch(table, first, size, []))
    prompt = perf_counter() - begin
    logits = executor.run(_batch(table, n - 1, 1, [0]))
    assert logits.shape == (1, plan.program.n_vocab)
    assert np.isfinite(logits).all(), "a logit of the last token is no number"
    end, _ = observer.memory()
    assert end == ready, f"{ready - end} bytes were taken after ready"
    assert n <= (shape.n_kv_blocks - 1) * KV_BLOCK_TOKENS
    taken, layers = start - ready, plan.choice.n_gpu_layers if plan.choice else 0
    return [
        f"context filled to its last token: {n} tokens, {(n - 1) / prompt:.0f} tokens a second with -ngl {layers}",
        f"taken of the card: {taken:,} bytes; of the ledger {listed:,}; the difference, {taken - listed:,} bytes, is the driver's own "
        f"for kernels and graphs (the ledger leaves {plan.ledger.total('CUDA0', 'driver'):,} for that and for the context)",
        "taken between ready and the last token: 0 bytes",
    ]


def _batch(table: np.ndarray, first: int, n: int, wanted: list[int]) -> Batch:
    positions = np.arange(first, first + n, dtype=np.int32)
    return Batch(positions * 31 % 997, positions, np.zeros(n, np.int32), table, np.array(wanted, np.int32))
