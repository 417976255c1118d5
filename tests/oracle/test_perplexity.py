"""The embedded model's perplexity on the CPU executor is the reference's, on every tier this processor runs and for every kind of KV cache.

The text: the held-out questions, answered as the model was taught to, in the words of this Python's docstrings. Counted are the
answers only: the model never learned to foresee questions. The oracle's models have random weights, whose perplexity says nothing.
"""

import inspect
import pydoc
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.engine.loading import Options, Planned, make_executor, plan_model
from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.executor import Batch, Executor
from ggrun.text import chat_template, load_tokenizer
from quant.simd import tiers
from tests.conftest import EMBEDDED
from tests.e2e.test_embedded_model import load

N_TOKENS = 2048
# q4_0 cannot be compared so: the least noise moves keys and values by whole steps. Noise of 0.1% before rounding moves the reference's own
# perplexity by 1%, noise of 1% by 3%. tests/unit/test_cpu_programs.py compares q4_0 where activations are exact.
KV_CACHES = {kind: {"type_k": kind, "type_v": kind} for kind in ("f16", "q8_0")}  # name: the options that ask for it


def answer(name: str) -> str:
    """What a docstring says first, behind the signature; empty for what this Python does not have."""
    found = pydoc.locate(name)
    summary = (inspect.getdoc(found) or "").partition(".")[0] if found else ""
    try:
        signature = re.sub(" at 0x[0-9a-f]+", "", str(inspect.signature(found)))  # type: ignore[arg-type]  # addresses differ from run to run
    except (TypeError, ValueError):
        signature = "()"
    return f"{name}{signature}: {summary}." if summary else ""


def plan(path: Path, **options: object) -> Planned:
    return plan_model(path, Options(n_ctx=N_TOKENS, n_ubatch=512, n_logits=512, reuse=False, **options))  # type: ignore[arg-type]


@cache
def text() -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids [N_TOKENS], and which of them belong to answers."""
    planned = plan(EMBEDDED)
    tokenizer = load_tokenizer(planned.file.metadata)
    template = chat_template(planned.file.metadata, tokenizer)
    ids: list[int] = []
    answers: list[bool] = []
    for row in load("questions.json"):
        question = template.render([{"role": "user", "content": row["question"]}]).text
        for part, counts in ((question, False), (answer(row["name"]) + "<|im_end|>\n", True)):
            tokens = tokenizer.encode(part, add_special=False, parse_special=True)
            ids += tokens
            answers += [counts] * len(tokens)
    planned.file.close()
    assert sum(answers[:N_TOKENS]) > 1000
    return np.array(ids[:N_TOKENS], np.int32), np.array(answers[:N_TOKENS])


def perplexity(executor: Executor) -> float:
    """e to the mean surprise, in nats, of the answers' tokens, each after all tokens before it."""
    ids, answers = text()
    table = np.arange(1, 1 + N_TOKENS // KV_BLOCK_TOKENS, dtype=np.int32)[None]
    surprises = []
    for start in range(0, N_TOKENS, 512):
        positions = np.arange(start, start + 512, dtype=np.int32)
        rows = np.arange(512, dtype=np.int32)
        logits = executor.run(Batch(ids[positions], positions, np.zeros(512, np.int32), table, rows)).astype(np.float64)
        following = ids[start + 1 : start + 513]
        logits = logits[: len(following)]
        surprises.append(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(following)), following])
    return float(np.exp(np.concatenate(surprises)[answers[1:]].mean()))


@cache
def reference(kv: str) -> float:
    """The reference executor's, with keys and values rounded alike."""
    planned = plan(EMBEDDED, **KV_CACHES[kv])
    executor = make_executor("reference", planned, None)
    try:
        return perplexity(executor)
    finally:
        executor.close()
        planned.file.close()


@pytest.mark.parametrize("kv", KV_CACHES)
@pytest.mark.parametrize("tier", tiers())
def test_perplexity(tier: str, kv: str) -> None:
    planned = replace(plan(EMBEDDED, **KV_CACHES[kv]), device=CpuDevice(tier))
    executor = make_executor("cpu", planned, None)
    try:
        found = perplexity(executor)
    finally:
        executor.close()
        planned.file.close()
    want = reference(kv)
    print(f"{tier}, {kv}: {found:.3f}, {found / want:.5f} of the reference's")
    assert found == pytest.approx(want, rel=0.005)
