"""The engine on real files: rule 11 (alone equals batched, to the bit), prefix reuse, stopping, cancelling, full contexts, bad input."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.engine import ContextExceeded
from ggrun.engine.generation import Generation
from ggrun.errors import GgrunError
from ggrun.gguf import LOAD_MODES
from ggrun.models.spec import SpecError
from ggrun.plan.device import KV_BLOCK_TOKENS, KV_TYPES
from ggrun.plan.memory import has_huge_pages
from tests.conftest import EMBEDDED
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
ENDLESS = {"on_overflow": "shift", "keep": 8}
RNG = np.random.default_rng(7)
PROMPT = [int(i) for i in RNG.integers(3, 380, 90)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    with Engine.open(MODEL, n_ctx=1024, n_parallel=4, n_ubatch=48) as engine:
        yield engine


def greedy_ids(engine: Engine, prompt: list[int], n: int = 12) -> list[int]:
    return engine.submit(prompt, GREEDY, n_predict=n).wait().ids


def test_logits_do_not_depend_on_batching_chunks_or_threads() -> None:
    want = None
    for options in ({"n_ubatch": 128}, {"n_ubatch": 7}, {"n_threads": 1}, {"n_ubatch": 33, "n_threads": 2, "n_threads_batch": 1}):
        with Engine.open(MODEL, n_ctx=256, **{"n_logits": 128, **options}) as engine:
            logits = engine.forward(PROMPT)
        want = logits if want is None else want
        np.testing.assert_array_equal(logits, want, err_msg=str(options))


def test_every_load_mode_computes_the_same() -> None:
    results = []
    for mode in LOAD_MODES:
        with Engine.open(MODEL, n_ctx=256, n_logits=128, load_mode=mode) as engine:
            early = engine.forward(PROMPT)
            engine._executor.settle()
            results += [early, engine.forward(PROMPT)]
            copies = [line.n_bytes for line in engine.plan.ledger.lines if "filled in the background" in line.what]
            assert bool(copies) == (mode == "auto" and has_huge_pages()), mode
            assert not [note for note in engine.notes if "stay mapped" in note]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_parallel_generations_equal_lonely_ones(engine: Engine) -> None:
    prompts = [PROMPT[:n] for n in (5, 40, 64, 90)]
    alone = [greedy_ids(engine, p) for p in prompts]
    together = [g.wait().ids for g in [engine.submit(p, GREEDY, n_predict=12) for p in prompts]]
    assert together == alone


def test_a_conversation_reuses_its_keys_and_values_and_answers_the_same() -> None:
    with Engine.open(MODEL, n_ctx=512) as engine:
        first = engine.submit(PROMPT, GREEDY, n_predict=20).wait()
        longer = PROMPT + first.ids + PROMPT[:10]
        reused = engine.submit(longer, GREEDY, n_predict=10).wait()
    with Engine.open(MODEL, n_ctx=512) as engine:
        fresh = engine.submit(longer, GREEDY, n_predict=10).wait()
    assert first.timings.cache_n == fresh.timings.cache_n == 0
    assert reused.timings.cache_n == len(PROMPT) + 19  # the last generated token was never computed
    assert reused.timings.cache_n + reused.timings.prompt_n == len(longer)
    assert reused.ids == fresh.ids


@pytest.mark.parametrize("kv", KV_TYPES)
def test_prompts_that_share_a_prefix_are_answered_as_by_a_fresh_engine(kv: str) -> None:
    """Repeated whole, and parting inside a block: full blocks are shared, the parting one is copied, quants and scales."""
    options = {"n_ctx": 256, "type_k": kv, "type_v": kv}
    parting = PROMPT[:77] + PROMPT[:30]
    assert 77 % KV_BLOCK_TOKENS
    with Engine.open(EMBEDDED, **options) as engine:
        first, again, other = [engine.submit(p, GREEDY, n_predict=12).wait() for p in (PROMPT, PROMPT, parting)]
    with Engine.open(EMBEDDED, **options) as engine:
        fresh = engine.submit(parting, GREEDY, n_predict=12).wait()
    assert [g.timings.cache_n for g in (first, again, other, fresh)] == [0, len(PROMPT) - 1, 77, 0]
    assert again.ids == first.ids
    assert other.ids == fresh.ids


def test_seed_decides(engine: Engine) -> None:
    def run(seed: int) -> Generation:
        return engine.submit(PROMPT, Sampling(seed=seed, temperature=1.5, ignore_eos=True), n_predict=16).wait()

    assert run(1).ids == run(1).ids != run(2).ids
    unseeded = run(-1)
    assert run(unseeded.seed).ids == unseeded.ids  # the seed that was drawn is told, and repeats the answer


def test_limits_and_reasons(engine: Engine) -> None:
    g = engine.submit(PROMPT, GREEDY, n_predict=5).wait()
    assert (len(g.ids), g.finish_reason) == (5, "length")
    assert g.timings.predicted_n == 5
    nothing = engine.submit(PROMPT, GREEDY, n_predict=0).wait()
    assert (nothing.ids, nothing.finish_reason) == ([], "length")
    full = engine.submit(PROMPT, GREEDY).wait()
    assert (full.finish_reason, len(PROMPT) + len(full.ids)) == ("context_full", engine.n_ctx)


def test_stop_words_end_the_text_before_them(engine: Engine) -> None:
    free = engine.submit(PROMPT, GREEDY, n_predict=30).wait()
    word = free.text[10:13]
    stopped = engine.submit(PROMPT, GREEDY, n_predict=30, stop=[word]).wait()
    assert stopped.finish_reason == "stop"
    assert stopped.stop_word == word
    assert stopped.text == free.text[: free.text.index(word)]


def test_a_full_context_shifts_when_asked_and_says_how_much() -> None:
    with Engine.open(MODEL, n_ctx=128) as engine:
        g = engine.submit(PROMPT, GREEDY, n_predict=100, keep=16, on_overflow="shift").wait()
        assert (len(g.ids), g.finish_reason) == (100, "length")
        assert g.n_shifted > 0
        long = engine.submit(PROMPT * 3, GREEDY, n_predict=4, keep=16, on_overflow="shift").wait()
        assert long.n_shifted >= 270 - 128
        with pytest.raises(ContextExceeded, match=r"270 tokens .* holds 128"):
            engine.submit(PROMPT * 3, GREEDY)


def test_cancelling_ends_it_and_keeps_what_was_said(engine: Engine) -> None:
    g = engine.submit(PROMPT, GREEDY, **ENDLESS)
    seen = []
    for event in g:
        seen.append(event.id)
        if len(seen) == 3:
            g.cancel()
    assert g.finish_reason == "cancelled"
    assert g.ids == [i for i in seen if i is not None]
    assert greedy_ids(engine, PROMPT) == greedy_ids(engine, PROMPT)


def test_a_cancelled_neighbour_changes_nothing(engine: Engine) -> None:
    want = greedy_ids(engine, PROMPT, 40)
    other = engine.submit(PROMPT[::-1], GREEDY, **ENDLESS)
    g = engine.submit(PROMPT, GREEDY, n_predict=40)
    next(iter(g))
    threading.Timer(0.005, other.cancel).start()
    assert g.wait().ids == want
    assert other.wait().finish_reason == "cancelled"


def test_more_requests_than_slots_wait_their_turn(engine: Engine) -> None:
    generations = [engine.submit(PROMPT[: 10 + i], GREEDY, n_predict=6) for i in range(9)]
    assert all(len(g.wait().ids) == 6 for g in generations)


def test_bad_input_is_a_sentence(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(GgrunError, match="empty"):
        engine.submit([])
    with pytest.raises(GgrunError, match=r"token id 384 is outside .* 384"):
        engine.submit([1, 384])
    with pytest.raises(GgrunError, match="no such file"):
        Engine.open(tmp_path / "none.gguf")
    with pytest.raises(GgrunError, match="executor 'tpu'"):
        Engine.open(MODEL, executor="tpu")
    closed = Engine.open(MODEL, n_ctx=64)
    closed.close()
    closed.close()
    with pytest.raises(GgrunError, match="closed"):
        closed.submit([1])


def test_an_unsupported_architecture_lists_the_supported(shared: Path) -> None:
    with pytest.raises(SpecError, match=r"'gemma3' is not supported; supported are: llama"):
        Engine.open(shared / "oracle" / "gemma3.Q8_0.gguf")


def test_the_reference_executor_runs_the_same_engine() -> None:
    with Engine.open(MODEL, n_ctx=128, executor="reference", n_ubatch=32) as reference, Engine.open(MODEL, n_ctx=128, n_logits=64) as cpu:
        assert len(reference.submit(PROMPT, GREEDY, n_predict=3).wait().ids) == 3  # in chunks, of which only the last wants logits
        want, got = reference.forward(PROMPT), cpu.forward(PROMPT)
    assert np.square(got - want).sum() / np.square(want - want.mean(-1, keepdims=True)).sum() < 2.5e-3


def test_closing_while_generating_ends_the_generation() -> None:
    engine = Engine.open(MODEL, n_ctx=1024)
    g = engine.submit(PROMPT, GREEDY, **ENDLESS)
    next(iter(g))
    engine.close()
    assert g.wait().finish_reason == "cancelled"


def test_the_likeliest_tokens_are_the_models_own(engine: Engine) -> None:
    """Also where sampling cuts to fewer, and where a bias forbids the likeliest."""
    logits = engine.forward(PROMPT)[-1].astype(np.float64)
    natural = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    want = np.argsort(-natural, kind="stable")[:5]
    for sampling in (GREEDY, Sampling(seed=1, top_k=2), Sampling(seed=1, top_k=0, logit_bias=((int(want[0]), -np.inf),))):
        (event,) = (e for e in engine.submit(PROMPT, sampling, n_predict=1, n_top=5) if e.id is not None)
        assert [id_ for id_, _ in event.top] == want.tolist()
        np.testing.assert_allclose([p for _, p in event.top], natural[want], atol=1e-5)
        assert event.logprob == pytest.approx(natural[event.id], abs=1e-5)
    with pytest.raises(GgrunError, match="n_top"):
        engine.submit(PROMPT, n_top=-2)


def test_a_prompt_is_cut_only_when_that_is_asked_for() -> None:
    with Engine.open(MODEL, n_ctx=128) as engine:
        with pytest.raises(ContextExceeded) as refused:
            engine.submit(PROMPT * 3)
        assert (refused.value.n_prompt, refused.value.n_ctx) == (270, 128)
        g = engine.submit(PROMPT * 3, GREEDY, n_predict=4, keep=16, truncate=True).wait()
        assert (g.n_cut, g.n_shifted, len(g.ids)) == (270 - 16 - 56, 0, 4)
        assert engine.submit(PROMPT, GREEDY, n_predict=4, truncate=True).wait().n_cut == 0


def test_a_prompt_can_be_computed_anew(engine: Engine) -> None:
    first, again = [engine.submit(PROMPT, GREEDY, n_predict=4, cache_prompt=False).wait() for _ in range(2)]
    assert (again.timings.cache_n, again.timings.prompt_n) == (0, len(PROMPT))
    assert again.ids == first.ids


def test_listeners_are_told_of_every_event(engine: Engine) -> None:
    told, events = threading.Semaphore(0), []

    def listen(generation: Generation) -> None:
        events.append(generation.events.get_nowait())
        told.release()
        if len(events) == 3:
            raise RuntimeError("not called again")

    g = engine.submit(PROMPT, GREEDY, n_predict=8, listener=listen)
    for _ in range(3):
        assert told.acquire(timeout=10)
    assert len(g.wait().ids) == 5
    assert len(events) == 3
    assert g.state == "done"


def test_status_tells_slots_and_totals() -> None:
    with Engine.open(MODEL, n_ctx=512, n_parallel=2) as engine:
        assert [slot.state for slot in engine.status().slots] == ["idle", "idle"]
        g = engine.submit(PROMPT, GREEDY, **ENDLESS)
        next(iter(g))
        status = engine.status()
        assert sorted(slot.state for slot in status.slots) == ["answer", "idle"]
        slot = status.slots[g.slot]
        assert (slot.n_ctx, slot.n_prompt, slot.n_prompt_done) == (256, len(PROMPT), len(PROMPT))
        assert slot.n_tokens > len(PROMPT)
        assert status.kv_used >= len(PROMPT)
        g.cancel()
        g.wait()
        last = engine.submit(PROMPT, GREEDY, n_predict=2).wait()
        status = engine.status()
        assert last.slot in (0, 1), "where it is kept stays known, so that it can be saved"
        assert status.kv_used == 0
        assert 0 < status.kv_cached <= status.kv_tokens == 512
        assert (status.prompt_tokens, status.cached_tokens, status.n_waiting) == (len(PROMPT) + 1, len(PROMPT) - 1, 0)
        assert status.predicted_tokens >= 3
        assert status.predicted_seconds > 0
