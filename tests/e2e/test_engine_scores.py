"""Log probabilities of a prompt's own tokens: those of `forward`, whatever else runs and however few rows a step has."""

import math
from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.engine import ContextExceeded
from ggrun.engine.generation import Generation
from tests.conftest import EMBEDDED
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
PROMPT = [int(i) for i in np.random.default_rng(3).integers(3, 380, 90)]


def expected(path: Path, ids: list[int], n_top: int) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    """(id, logprob, top) of ids[1:], from the logits of all positions."""
    with Engine.open(path, n_ctx=512, n_logits=64) as engine:
        logits = engine.forward(ids)
    found = []
    for row, id_ in zip(logits, ids[1:]):
        peak = row.max()
        total = float(peak) + math.log(float(np.exp(row - peak).sum(dtype=np.float64)))
        order = np.argsort(-row, kind="stable")[:n_top]
        found.append((id_, float(row[id_]) - total, tuple((int(i), float(row[i]) - total) for i in order)))
    return found


def told(generation: Generation) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    return [(token.id, token.logprob, token.top) for token in generation.prompt_scores]


def test_the_values_are_those_of_forward_to_the_bit() -> None:
    want = expected(MODEL, PROMPT, 3)
    for n_parallel, n_logits, n_ubatch in ((1, 0, 512), (2, 7, 16), (3, 64, 5)):
        with Engine.open(MODEL, n_ctx=1024, n_parallel=n_parallel, n_logits=n_logits, n_ubatch=n_ubatch) as engine:
            plain = engine.submit(PROMPT, GREEDY, n_predict=4).wait()  # leaves its blocks in the cache
            assert plain.prompt_scores == []
            scored = engine.submit(PROMPT, GREEDY, n_predict=4, n_top=3, prompt_logprobs=True).wait()
            assert told(scored) == want
            assert scored.ids == plain.ids
            assert (scored.timings.cache_n, scored.timings.prompt_n) == (0, len(PROMPT))
            assert engine.status().kv_used == 0


def test_others_go_on_and_get_the_same() -> None:
    alone = {}
    with Engine.open(MODEL, n_ctx=512) as engine:
        for i in range(3):
            alone[i] = engine.submit(PROMPT[i : i + 20], GREEDY, n_predict=40).wait().ids
    prompts = [PROMPT, PROMPT[5:60], PROMPT[:1], PROMPT[3:]]
    want = [expected(MODEL, ids, 1) for ids in prompts]
    with Engine.open(MODEL, n_ctx=1024, n_parallel=4, n_logits=6, n_ubatch=16, step_ms=5) as engine:
        talkers = [engine.submit(PROMPT[i : i + 20], GREEDY, n_predict=40) for i in range(3)]
        scored = [engine.submit(ids, GREEDY, n_predict=n, n_top=1, prompt_logprobs=True) for n, ids in enumerate(prompts)]
        assert [told(generation.wait()) for generation in scored] == want
        assert [len(generation.ids) for generation in scored] == [0, 1, 2, 3]
        assert {i: talker.wait().ids for i, talker in enumerate(talkers)} == alone


def test_a_preempted_prompt_is_scored_once() -> None:
    want = expected(MODEL, PROMPT, 0)
    with Engine.open(MODEL, n_ctx=160, n_parallel=3, kv_tokens=192, n_ubatch=16) as engine:
        older = [engine.submit(PROMPT[i:32], GREEDY, n_predict=100, on_overflow="shift") for i in range(2)]
        next(iter(older[0]))
        scored = engine.submit(PROMPT, GREEDY, n_predict=30, prompt_logprobs=True)
        assert told(scored.wait()) == want
        assert len(scored.ids) == 30
        assert [len(generation.wait().ids) for generation in older] == [100, 100]
        assert engine.status().n_preempted > 0


def test_a_prompt_that_does_not_fit_is_refused_though_others_are_cut() -> None:
    with Engine.open(MODEL, n_ctx=64) as engine, pytest.raises(ContextExceeded):
        engine.submit(PROMPT, GREEDY, truncate=True, prompt_logprobs=True)


def test_the_token_that_ends_the_answer_is_told() -> None:
    with Engine.open(EMBEDDED, n_ctx=512) as engine:
        ids, _ = engine.chat_ids([{"role": "user", "content": "What is json.dumps?"}])
        plain = engine.submit(ids, Sampling(temperature=0.0)).wait()
        assert plain.finish_reason == "stop"
        scored = engine.submit(ids, Sampling(temperature=0.0), prompt_logprobs=True).wait()
        assert scored.ids[:-1] == plain.ids
        assert scored.ids[-1] in engine.tokenizer.end_of_generation
        assert scored.text == plain.text
