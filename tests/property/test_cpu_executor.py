"""What the CPU executor promises whatever the batch: bits that do not depend on company, chunking, slots or threads; no allocation."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.runtime.cpu import executor as executor_module
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cpu.executor import CpuExecutor
from ggrun.runtime.executor import Cancelled
from tests.cpu_programs import Model, Sequences, executor, plan

N_CTX, N_SEQS = 300, 3  # more than one partition of attention
MODELS = {
    "f32": Model(),
    "window and softcap": Model("F16", window=37, softcap=2.0, style="neox", head_dim=24, head_dim_v=40, n_rot=12),
    "experts q8_0": Model("Q8_0", n_ff=64, n_expert=6),
    "k-quants": Model("Q4_K", n_embd=256, n_ff=256, n_head=6, n_head_kv=1, head_dim=128, head_dim_v=128, n_rot=128, bias=True),
}


KV_TYPES = {"kv q8_0": ("q8_0", "q8_0"), "kv q4_0": ("q4_0", "q4_0")}
MODELS |= {name: Model(head_dim=32, head_dim_v=64, n_rot=32, window=150) for name in KV_TYPES}


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads beyond the cores of the test machine, for the sake of the order in which they happen to run."""
    monkeypatch.setattr(executor_module, "n_cores", lambda: 8)


@pytest.fixture(scope="module", params=MODELS)
def ready(request: pytest.FixtureRequest) -> Iterator[tuple[CpuExecutor, np.ndarray, np.ndarray]]:
    """An executor, three random token sequences, and their logits computed alone, token by token, on one thread."""
    program, tensors = MODELS[request.param].build()
    ids = np.random.default_rng(7).integers(0, 64, (N_SEQS, N_CTX)).astype(np.int32)
    seqs = Sequences(N_SEQS, N_CTX)
    type_k, type_v = KV_TYPES.get(request.param, ("f16", "f16"))
    pins = {"n_ctx": N_SEQS * N_CTX, "n_seqs": N_SEQS, "type_k": type_k, "type_v": type_v}
    with executor(program, tensors, **pins) as cpu:
        alone = np.stack([[cpu.run(seqs.batch([(s, i, [ids[s, i]])]))[0].copy() for i in range(N_CTX)] for s in range(N_SEQS)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor_module, "n_cores", lambda: 8)
        with executor(program, tensors, **pins, n_threads=3) as cpu:
            yield cpu, ids, alone


@given(st.data())
@settings(max_examples=25)
def test_alone_equals_batched(ready: tuple[CpuExecutor, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    """Any mix of chunks of sequences, in any slots, gives each token the bits it gets alone; stale cells may hold anything."""
    cpu, ids, alone = ready
    raw = cpu._memory.view(cpu._kv_at, cpu._segment.kv_bytes)
    raw.view(np.float16)[:] = data.draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    seqs = Sequences(N_SEQS, N_CTX)
    slots = data.draw(st.permutations(range(N_SEQS)))
    at = [0] * N_SEQS
    while sum(at) < data.draw(st.integers(1, N_SEQS * N_CTX), label="stop"):
        chunks = [data.draw(st.integers(0, min(64 // N_SEQS, N_CTX - at[s])), label="chunk") for s in range(N_SEQS)]
        parts = [(slots[s], at[s], ids[s, at[s] : at[s] + n]) for s, n in enumerate(chunks) if n]
        if not parts:
            break
        logits = cpu.run(seqs.batch(parts))
        expected = np.concatenate([alone[s, at[s] : at[s] + n] for s, n in enumerate(chunks)])
        np.testing.assert_array_equal(logits.view(np.int32), expected.view(np.int32))
        at = [a + n for a, n in zip(at, chunks)]


def test_a_whole_prompt_equals_its_chunks_on_any_number_of_threads() -> None:
    program, tensors = MODELS["k-quants"].build()
    ids = np.random.default_rng(3).integers(0, 64, N_CTX)
    results = []
    for n_threads, step in ((1, N_CTX), (2, N_CTX), (5, 64), (1, 7)):
        with executor(program, tensors, n_threads=n_threads, n_ctx=N_CTX, n_ubatch=N_CTX, n_logits=N_CTX) as cpu:
            seqs = Sequences(1, N_CTX)
            parts = [cpu.run(seqs.batch([(0, i, ids[i : i + step])])).copy() for i in range(0, N_CTX, step)]
        results.append(np.concatenate(parts).view(np.int32))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("kv", ["f16", *KV_TYPES])
def test_copied_block_continues_another_sequence(kv: str) -> None:
    """Two sequences share a prefix that ends inside a block: the block is copied and each goes its own way."""
    program, tensors = MODELS.get(kv, MODELS["f32"]).build()
    type_k, type_v = KV_TYPES.get(kv, ("f16", "f16"))
    ids = np.random.default_rng(5).integers(0, 64, 60)
    seqs = Sequences(2, 64)
    with executor(program, tensors, n_seqs=2, n_ctx=128, type_k=type_k, type_v=type_v) as cpu:
        cpu.run(seqs.batch([(0, 0, ids[:45])]))
        for i in range(2):
            cpu.copy_block(int(seqs.tables[0, i]), int(seqs.tables[1, i]))
        cpu.run(seqs.batch([(0, 45, ids[::-1][:10])]))
        forked = cpu.run(seqs.batch([(1, 45, ids[45:])])).copy()
        whole = cpu.run(seqs.batch([(1, 0, ids)]))[45:]
        np.testing.assert_array_equal(forked, whole)


@given(
    model=st.sampled_from(list(MODELS.values())),
    n_threads=st.integers(1, 8),
    n_ubatch=st.integers(1, 700),
    n_seqs=st.integers(1, 4),
    n_ctx=st.integers(32, 5000),
    reuse=st.booleans(),
    copy_weights=st.booleans(),
)
@settings(max_examples=15)
def test_ledger_equals_allocation(
    model: Model, n_threads: int, n_ubatch: int, n_seqs: int, n_ctx: int, reuse: bool, copy_weights: bool
) -> None:
    """What is allocated is what the ledger lists, to the byte."""
    program, tensors = replace(model, n_layer=1).build()
    pins = {"n_threads": n_threads, "n_ubatch": n_ubatch, "n_seqs": n_seqs, "n_ctx": n_ctx, "reuse": reuse, "n_logits": n_seqs}
    pins["copy_weights"] = copy_weights
    made = plan(program, CpuDevice(), **pins)
    ledger = sum(line.n_bytes for line in made.ledger.lines if line.purpose in ("kv", "scratch") or "private copy" in line.what)
    seqs = Sequences(n_seqs, made.shape.n_ctx)
    with executor(program, tensors, **pins) as cpu:
        assert cpu.allocated_bytes == ledger
        n = min(n_ubatch, made.shape.n_ctx)
        rows = range(min(n, made.shape.n_logits))
        logits = cpu.run(seqs.batch([(0, 0, np.arange(n) % 64)], rows)).copy()
        assert np.isfinite(logits).all()
        for name, n_bytes in made.segments[0].lowered.work.items():
            offset = made.segments[0].offsets[name]
            assert 0 <= offset <= offset + n_bytes <= made.segments[0].scratch_bytes


def test_abort_stops_a_long_run_and_only_that() -> None:
    """A run that would take hours ends; the next computes as if nothing had been."""
    program, tensors = Model(n_layer=1).build()
    seqs = Sequences(1, 64)
    with executor(program, tensors, n_threads=2) as cpu:
        batch = seqs.batch([(0, 0, range(40))])
        want = cpu.run(batch).copy()
        steps = cpu._steps
        many = np.tile(steps, 1 << 14)
        cpu._team.set(steps=many.ctypes.data, steps_end=many.ctypes.data + many.nbytes)
        errors: list[BaseException] = []

        def forever() -> None:
            try:
                while True:
                    cpu.run(batch)
            except Cancelled as error:
                errors.append(error)

        thread = threading.Thread(target=forever)
        thread.start()
        time.sleep(0.05)
        cpu.abort()
        thread.join(60)
        assert errors, "the run went on"
        cpu._team.set(steps=steps.ctypes.data, steps_end=steps.ctypes.data + steps.nbytes)
        np.testing.assert_array_equal(cpu.run(batch), want)


def test_abort_before_a_run_stops_it_before_its_first_step() -> None:
    program, tensors = Model(n_layer=1).build()
    batch = Sequences(1, 64).batch([(0, 0, range(40))])
    with executor(program, tensors) as cpu:
        cpu.abort()
        with pytest.raises(Cancelled):
            cpu.run(batch)
        assert not cpu._memory.view(cpu._kv_at, cpu._segment.kv_bytes).any()
        cpu.run(batch)


def _team_ticks() -> tuple[int, set[str]]:
    """CPU time of all team threads of this process in ticks, and the states they are in."""
    ticks, states = 0, set()
    for thread in threading.enumerate():
        if thread.name.startswith("ggrun-cpu-"):
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            states.add(fields[0])
    return ticks, states


def test_an_idle_team_sleeps_and_a_closed_one_is_gone() -> None:
    program, tensors = Model(n_layer=1).build()
    batch = Sequences(1, 64).batch([(0, 0, range(40))])
    before = threading.active_count()
    with executor(program, tensors, n_threads=4) as cpu:
        cpu.settle()
        assert threading.active_count() == before + 3
        cpu.run(batch)
        while _team_ticks()[1] != {"S"}:
            time.sleep(0.01)
        ticks, _ = _team_ticks()
        time.sleep(1.0)
        assert _team_ticks() == (ticks, {"S"})
        cpu.run(batch)
        cpu.close()
        assert threading.active_count() == before
