"""Blocks in their neutral form between the GPU, the CPU and a plan over both; hidden rows of all of them."""

import numpy as np
import pytest

from ggrun.runtime.executor import Batch
from ggrun.runtime.kv_form import KvForm
from ggrun.runtime.reference import ReferenceExecutor
from tests.cpu_programs import Model
from tests.gpu.machines import error, running, sequences

pytestmark = pytest.mark.usefixtures("gpu")
MODEL = Model("Q8_0", head_dim=64, head_dim_v=32, n_rot=64)
IDS = np.random.default_rng(3).integers(0, 64, 50).astype(np.int32)
TYPES = [("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "q8_0")]
PLACES = {"gpu": "CUDA0", "first on the gpu": {"layer.0": "CUDA0"}, "head on the gpu": {"layer.1": "CUDA0", "head": "CUDA0"}}
CLOSE = {"f16": 1e-4, "q8_0": 1e-3, "q4_0": 2e-2}  # NMSE between devices


def read(r, form: KvForm, table: np.ndarray) -> list[np.ndarray]:
    found = [np.full(form.n_bytes, 0xEE, np.uint8) for _ in range(2)]
    for block, data in zip(table, found):
        r.executor.read_block(int(block), data)
    return found


@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("type_k", "type_v"), TYPES)
def test_written_elsewhere_it_is_the_same(where, type_k: str, type_v: str) -> None:
    program, tensors = MODEL.build()
    form = KvForm(program.states, type_k, type_v)
    pins = {"type_k": type_k, "type_v": type_v, "n_seqs": 2, "n_ctx": 256}
    judge = ReferenceExecutor(program, tensors, 16, type_k, type_v)
    reader = ReferenceExecutor(program, tensors, 16, type_k, type_v)
    with running(program, tensors, where, **pins) as r:
        s = sequences(r.plan)
        for at in (0, 32):
            batch = s.batch([(0, at, IDS[at : at + 32])])
            r.executor.run(batch)
            judge.run(batch)
        held = read(r, form, s.tables[0])
        want = r.executor.run(s.batch([(0, 50, IDS[:1])])).copy()
    with running(program, tensors, where, **pins) as r:
        for block, data in zip(s.tables[1], held):
            r.executor.write_block(int(block), data)
        for again, data in zip(read(r, form, s.tables[1]), held):
            np.testing.assert_array_equal(again, data)
        np.testing.assert_array_equal(r.executor.run(s.batch([(1, 50, IDS[:1])])), want)
    with running(program, tensors, "CPU", **pins) as r:  # another device
        for block, data in zip(s.tables[1], held):
            r.executor.write_block(int(block), data)
        assert error(r.executor.run(s.batch([(1, 50, IDS[:1])])), want) < 1e-3
    for index, data in enumerate(held):
        form.clear(data, min(32, 50 - 32 * index))
        reader.write_block(int(s.tables[0][index]), data)
    for name, both in judge.kv.items():
        for mine, ideal in zip(reader.kv[name], both):
            assert ((mine - ideal) ** 2).sum() <= max(CLOSE[type_k], CLOSE[type_v]) * (ideal**2).sum()


@pytest.mark.parametrize("where", [*PLACES.values(), {"embed": "CUDA0", "head": "CUDA0"}])
@pytest.mark.parametrize("prompt_from", [0, 16])
def test_hidden_rows(where, prompt_from: int) -> None:
    program, tensors = MODEL.build()
    judge = ReferenceExecutor(program, tensors, 16, "f16", "f16")
    none = np.zeros(0, np.int32)
    with running(program, tensors, where, prompt_from=prompt_from) as r:
        s = sequences(r.plan)
        for at, n in ((0, 20), (20, 1), (21, 5)):  # a long one, a graph's size, a padded one
            full = s.batch([(0, at, IDS[at : at + n])])
            batch = Batch(full.ids, full.positions, full.seqs, full.tables, none)
            want = judge.run_hidden(batch)
            rows = r.executor.run_hidden(batch)
            assert rows.shape == want.shape
            assert ((rows - want) ** 2).sum() < 1e-4 * (want**2).sum()
        judge.run(full)
        assert error(r.executor.run(full), judge.run(full)) < 1e-3  # the head still works
