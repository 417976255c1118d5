"""Blocks in their neutral form: read on one executor and written on another they are the same keys and values, to the bit."""

import numpy as np
import pytest

from ggrun.plan.device import KV_BLOCK_TOKENS as N
from ggrun.runtime.executor import Batch
from ggrun.runtime.hidden import HeadNorm
from ggrun.runtime.kv_form import KvForm
from ggrun.runtime.reference import ReferenceExecutor
from tests.cpu_programs import Model, Sequences, executor

IDS = np.random.default_rng(7).integers(0, 64, 70).astype(np.int32)
TYPES = [("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "f16"), ("f16", "q4_0")]
ROUNDING = {"f16": 1e-4, "q8_0": 1e-3, "q4_0": 2e-2}  # NMSE: the CPU quantizes activations, and values fall on other steps of the type
WIDE = Model("Q8_0", head_dim=64, head_dim_v=32, n_rot=64)  # a head's keys are not as wide as its values
ODD = Model("Q8_0", head_dim=16, head_dim_v=24, n_rot=16)  # values that the CPU pads


def blocks(made, form: KvForm, table: np.ndarray) -> list[np.ndarray]:
    found = []
    for block in table[: -(-len(IDS) // N)]:
        found.append(np.full(form.n_bytes, 0xEE, np.uint8))
        made.read_block(int(block), found[-1])
    return found


@pytest.mark.parametrize(("type_k", "type_v"), TYPES)
@pytest.mark.parametrize("model", [WIDE, ODD], ids=["wide", "odd"])
def test_written_elsewhere_it_is_the_same(model: Model, type_k: str, type_v: str) -> None:
    if model is ODD and (type_k, type_v) != ("f16", "f16"):
        pytest.skip("quantized types need heads of a multiple of 32")
    program, tensors = model.build()
    form = KvForm(program.states, type_k, type_v)
    s = Sequences(2, 128)
    with executor(program, tensors, type_k=type_k, type_v=type_v, n_seqs=2) as first:
        for at in range(0, len(IDS), 50):
            first.run(s.batch([(0, at, IDS[at : at + 50])]))
        held = blocks(first, form, s.tables[0])
        want = first.run(s.batch([(0, len(IDS), IDS[:1])])).copy()
    with executor(program, tensors, type_k=type_k, type_v=type_v, n_seqs=2) as second:
        for block, data in zip(s.tables[1], held):
            second.write_block(int(block), data)
        for again, data in zip(blocks(second, form, s.tables[1]), held):
            np.testing.assert_array_equal(again, data)
        np.testing.assert_array_equal(second.run(s.batch([(1, len(IDS), IDS[:1])])), want)


@pytest.mark.parametrize(("type_k", "type_v"), TYPES)
def test_the_cpus_blocks_hold_what_the_reference_computes(type_k: str, type_v: str) -> None:
    program, tensors = WIDE.build()
    form = KvForm(program.states, type_k, type_v)
    s = Sequences(2, 128)
    judge, reader = (ReferenceExecutor(program, tensors, 16, type_k, type_v) for _ in range(2))
    with executor(program, tensors, type_k=type_k, type_v=type_v, n_seqs=2, n_ubatch=70, n_logits=70) as cpu:
        batch = s.batch([(0, 0, IDS)])
        cpu.run(batch)
        judge.run(batch)
        for index, data in enumerate(blocks(cpu, form, s.tables[0])):
            n_tokens = min(N, len(IDS) - index * N)
            form.clear(data, n_tokens)
            reader.write_block(int(s.tables[0][index]), data)
            back = np.zeros_like(data)
            reader.read_block(int(s.tables[0][index]), back)
            form.clear(back, n_tokens)  # no numbers: zero has two q4_0 encodings
            np.testing.assert_array_equal(back, data)
    for name, held in judge.kv.items():
        for mine, want in zip(reader.kv[name], held):
            assert ((mine - want) ** 2).sum() <= max(ROUNDING[type_k], ROUNDING[type_v]) * (want**2).sum()  # a layer sees both


def test_clearing_leaves_the_first_tokens() -> None:
    program, _ = WIDE.build()
    form = KvForm(program.states, "q4_0", "f16")
    data = np.full(form.n_bytes, 255, np.uint8)
    form.clear(data, 5)
    for state, part in form.layers(data):
        for run in (run for views in form.views(state, part) for run in views):
            assert (run[:, :5] == 255).all()
            assert not run[:, 5:].any()


@pytest.mark.parametrize("n_expert", [0, 4])
def test_hidden_rows_are_the_references(n_expert: int) -> None:
    program, tensors = Model("Q8_0", n_expert=n_expert).build()
    s = Sequences(1, 128)
    batch = s.batch([(0, 0, IDS[:40])])
    none = Batch(batch.ids, batch.positions, batch.seqs, batch.tables, np.zeros(0, np.int32))
    judge = ReferenceExecutor(program, tensors, 16, "f16", "f16")
    want = judge.run_hidden(none)
    with executor(program, tensors) as cpu:
        rows = cpu.run_hidden(none).copy()
        logits = cpu.run(s.batch([(0, 40, IDS[40:41])])).copy()  # the keys and values are there
    with executor(program, tensors) as alone:
        alone.run(s.batch([(0, 0, IDS[:40])]))
        np.testing.assert_array_equal(alone.run(s.batch([(0, 40, IDS[40:41])])), logits)
    assert rows.shape == want.shape == (40, program.buffers[program.ops[0].outputs[0]].width)
    assert ((rows - want) ** 2).sum() < 1e-4 * (want**2).sum()
    normed = HeadNorm(program, tensors)(want)
    judge.run(batch)
    head = next(op for op in program.ops if op.kind == "take_rows")
    after = program.ops[program.ops.index(head) + 1].outputs[0]
    np.testing.assert_array_equal(normed, judge.values[after])
