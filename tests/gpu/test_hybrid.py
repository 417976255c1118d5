"""Plans over several devices on the stand-in driver: every cut gives what the uncut program gives."""

import numpy as np
import pytest

from ggrun.runtime.executor import Cancelled
from ggrun.runtime.hybrid import HybridExecutor
from tests.cpu_programs import Model
from tests.gpu.machines import error, planned, running, sequences

pytestmark = pytest.mark.usefixtures("gpu")
NMSE = 1e-4  # between two devices: both quantize activations, each in its own blocks
IDS = np.random.default_rng(5).integers(0, 64, 100).astype(np.int32)
DENSE, EXPERTS = Model("Q8_0"), Model("Q8_0", n_expert=4)


class Parted(Model):
    """Attention and feed-forward of a layer are units of their own."""

    def _layer(self, b, x, i):
        return super()._layer(_Parting(b, i), x, i)


class _Parting:
    """A builder that closes the unit at the layer's second norm and opens another."""

    def __init__(self, builder, i: int) -> None:
        self._b, self._i = builder, i

    def __getattr__(self, name):
        return getattr(self._b, name)

    def rms_norm(self, x, weight, eps):
        if weight.endswith("ffn_norm"):
            self._b._units.append(f"layer.{self._i}.ffn")
            self._b._unit = f"layer.{self._i}.ffn"
        return self._b.rms_norm(x, weight, eps)


def logits(program, tensors, where, n_gpus: int = 1, **pins: object) -> list[np.ndarray]:
    with running(program, tensors, where, n_gpus, **pins) as r:
        s = sequences(r.plan)
        parts = [[(0, 0, IDS[:20])], [(0, 20, IDS[20:21])], [(0, 21, IDS[21:24])], [(0, 24, IDS[24:25])]]
        return [r.executor.run(s.batch(part)).copy() for part in parts]


def assert_alike(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for mine, other in zip(got, want, strict=True):
        assert error(mine, other) < NMSE


@pytest.fixture(scope="module")
def uncut():
    program, tensors = Parted("Q8_0").build()
    return program, tensors, logits(program, tensors, "CPU")


def cuts():
    """Which units are on the GPU, as bits: all of them one by one would be 64; prefixes, suffixes, single units and every other one."""
    n = 6
    prefixes = [(1 << i) - 1 for i in range(1, n + 1)]
    return sorted({*prefixes, *(((1 << n) - 1) ^ p for p in prefixes[:-1]), *(1 << i for i in range(n)), 0b010101, 0b101010})


@pytest.mark.parametrize("bits", cuts())
def test_cut_equals_uncut(uncut, bits: int) -> None:
    program, tensors, want = uncut
    assert len(program.units) == 6
    where = {unit: "CUDA0" for i, unit in enumerate(program.units) if bits >> i & 1}
    assert_alike(logits(program, tensors, where), want)


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(64))
def test_every_cut(uncut, bits: int) -> None:
    test_cut_equals_uncut(uncut, bits)


def test_experts_on_the_cpu() -> None:
    program, tensors = Parted("Q8_0", n_expert=4).build()
    where = {unit: "CUDA0" for unit in program.units if not unit.endswith("ffn")}
    assert_alike(logits(program, tensors, where), logits(program, tensors, "CPU"))


@pytest.mark.parametrize("order", [("CUDA0", "CUDA1"), ("CUDA1", "CPU", "CUDA0"), ("CPU", "CUDA0", "CUDA1", "CUDA0")])
def test_two_gpus(driver, uncut, order) -> None:
    driver.set(devices=2)
    program, tensors, want = uncut
    where = {unit: order[i * len(order) // len(program.units)] for i, unit in enumerate(program.units)}
    assert_alike(logits(program, tensors, where, 2), want)


def test_what_crosses_is_copied_once(driver) -> None:
    """CPU, GPU, CPU: one copy each way a cut and the batch's numbers; nothing else."""
    program, tensors = DENSE.build()
    with running(program, tensors, {"layer.0": "CUDA0", "layer.1": "CUDA0"}) as r:
        assert isinstance(r.executor, HybridExecutor)
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:5])]))
        driver.reset()
        r.executor.run(s.batch([(0, 5, IDS[5:6])]))
        counters = driver.counters()
        row = 4 * DENSE.n_embd
        assert (counters["copies_h2d"], counters["copies_d2h"]) == (2, 1)
        assert counters["bytes_d2h"] == row
        assert counters["bytes_h2d"] < row + 256


def test_plain_cpu_plans_have_no_hybrid() -> None:
    from ggrun.runtime.cpu.executor import CpuExecutor

    program, tensors = DENSE.build()
    with running(program, tensors, "CPU") as r:
        assert isinstance(r.executor, CpuExecutor)


def test_allocated_equals_ledger(driver) -> None:
    program, tensors = Parted("Q8_0").build()
    where = dict.fromkeys(program.units[2:], "CUDA0")
    plan = planned(program, where)
    with running(program, tensors, where):
        used = driver.counters()
        gpu = sum(plan.ledger.total("CUDA0", purpose) for purpose in ("weights", "kv", "scratch"))
        assert used["used"][0] == gpu
        assert used["pinned"] - plan.ledger.total(purpose="staging") >= 0


def test_an_abort_between_stages() -> None:
    program, tensors = DENSE.build()
    with running(program, tensors, {"layer.1": "CUDA0"}) as r:
        batch = sequences(r.plan).batch([(0, 0, IDS[:5])])
        want = r.executor.run(batch).copy()
        r.executor.abort()
        with pytest.raises(Cancelled):
            r.executor.run(batch)
        assert np.array_equal(r.executor.run(batch), want)


def test_copied_blocks_on_every_device() -> None:
    program, tensors = DENSE.build()
    with running(program, tensors, {"layer.1": "CUDA0"}, n_seqs=2) as r:
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:10])], []))
        want = r.executor.run(s.batch([(0, 10, IDS[10:11])])).copy()
        r.executor.copy_block(int(s.tables[0, 0]), int(s.tables[1, 0]))
        assert np.array_equal(r.executor.run(s.batch([(1, 10, IDS[10:11])])), want)
