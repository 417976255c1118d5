"""What programs become on a GPU: steps, fusions, work areas, launches; no driver needed."""

from collections import Counter

import pytest

from ggrun.plan.device import MissingKernels
from ggrun.runtime.cuda import inputs
from ggrun.runtime.cuda.bind import BIND, Binder
from ggrun.runtime.cuda.device import CudaDevice, CudaStep
from ggrun.runtime.cuda.inputs import Counts
from ggrun.runtime.cuda.launch import Arch
from tests.cpu_programs import Model
from tests.gpu.machines import ARCH, planned, sequences

DENSE = Model("Q8_0")
MODELS = {
    "dense": DENSE,
    "float": Model("F32"),
    "bias": Model("Q4_0", bias=True),
    "experts": Model("Q8_0", n_expert=4),
    "neox": Model("Q8_0", style="neox", n_rot=8),
}


def steps(model: Model, where="CUDA0", **pins):
    plan = planned(model.build()[0], where, **pins)
    return next(s for s in plan.segments if s.device == "CUDA0").lowered.steps


def kinds(model: Model) -> list[str]:
    return [step.kernel for step in steps(model)]


def test_a_dense_layer() -> None:
    assert kinds(DENSE)[1:14] == [
        "norm", "matmul.Q8_0", "matmul.Q8_0", "matmul.Q8_0", "rope_table", "rope_store", "attention", "quantize", "matmul.Q8_0",
        "add_norm", "gated.Q8_0", "matmul.Q8_0", "add_norm",
    ]  # fmt: skip


def test_a_layer_of_experts() -> None:
    assert kinds(MODELS["experts"])[10:19] == [
        "add_norm", "matmul.F32", "route", "group_experts", "expert_matmul.Q8_0", "expert_matmul.Q8_0", "glu", "expert_matmul.Q8_0",
        "expert_sum",
    ]  # fmt: skip


def test_float_weights_are_not_gated_and_read_float32() -> None:
    found = kinds(MODELS["float"])
    assert "quantize" not in found
    assert not any(kernel.startswith("gated") for kernel in found)


def test_what_nobody_reads_is_not_written() -> None:
    norm = next(step for step in steps(DENSE) if step.kernel == "norm")
    assert [name.partition(":")[1] for name in norm.outputs] == [":"]  # quantized rows only
    routed = next(step for step in steps(MODELS["experts"]) if step.kernel == "add_norm")
    assert len(routed.outputs) == 3  # the sum, float32 for the router, quantized for the experts


def test_a_cut_keeps_what_crosses() -> None:
    program, _ = DENSE.build()
    for cut in range(1, len(program.units)):
        where = dict.fromkeys(program.units[:cut], "CUDA0")
        segment = planned(program, where).segments[0]
        written = {name for step in segment.lowered.steps for name in step.outputs}
        crossing = {name for op in program.ops if op.unit not in where for name in op.inputs} & {
            name for op in program.ops if op.unit in where for name in op.outputs
        }
        assert crossing <= written


def test_every_step_names_its_ops_and_has_a_binding() -> None:
    for model in MODELS.values():
        program, _ = model.build()
        segment = planned(program).segments[0]
        covered = []
        for step in segment.lowered.steps:
            assert isinstance(step, CudaStep)
            assert step.kernel.partition(".")[0] in BIND
            assert step.unit == step.ops[0].unit
            covered += step.ops
        assert {id(op) for op in covered} == {id(op) for op in program.ops}


def test_missing_kernels_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggrun.runtime.cuda import matmul

    monkeypatch.setattr(matmul, "FORMATS", frozenset({"F32"}))
    with pytest.raises(MissingKernels, match="CUDA0 has no kernel for: embed with Q8_0 weights, linear with Q8_0 weights"):
        planned(DENSE.build()[0])


def launches(model: Model, counts: Counts, arch: Arch = ARCH):
    program, tensors = model.build()
    plan = planned(program, arch=arch)
    segment = plan.segments[0]
    binder = Binder(program, segment, plan.shape, tensors, arch, 1 << 20)
    return binder.launches(0, len(segment.lowered.steps), counts)


def test_launches_of_a_token() -> None:
    found = Counter(launch.kernel.partition("__")[0] for launch in launches(DENSE, Counts(1, 1)))
    per_layer = {"gemv": 5, "gated": 1, "norm": 2, "rope_store": 1, "quantize": 2}
    for base, n in per_layer.items():
        assert found[base] == 2 * n + {"gemv": 1, "norm": 1}.get(base, 0)


def test_without_logit_rows_there_is_no_head() -> None:
    with_head, without = (launches(DENSE, Counts(20, rows, 2)) for rows in (1, 0))
    assert len(with_head) - len(without) == 3  # take_rows, norm, the output matrix


def test_launches_stay_the_same_for_the_same_counts() -> None:
    assert launches(DENSE, Counts(4, 4)) == launches(DENSE, Counts(4, 4))


def test_the_batch_block() -> None:
    shape = planned(DENSE.build()[0], n_seqs=2).shape
    rows = sequences(planned(DENSE.build()[0], n_seqs=2))
    batch = rows.batch([(1, 5, [7, 8, 9])], [2])
    inputs.check(batch, shape, 64)
    counts = Counts(4, 2)
    import numpy as np

    block = np.full(inputs.block_bytes(shape) // 4, -1, np.int32)
    n_bytes = inputs.pack(batch, counts, [], shape, block)
    at = inputs.places(counts, shape)
    assert n_bytes == at.n_bytes <= block.nbytes
    assert block[at.ids // 4 :][:4].tolist() == [7, 8, 9, 0]
    assert block[at.positions // 4 :][:4].tolist() == [5, 6, 7, 0]
    assert block[at.seqs // 4 :][:4].tolist() == [1, 1, 1, 2]
    assert block[at.out_rows // 4 :][:2].tolist() == [2, 0]
    width = inputs.table_blocks(shape)
    tables = block[at.tables // 4 :][: 3 * width].reshape(3, width)
    assert (tables[:2] == rows.tables).all()
    assert not tables[2].any()


def test_query_tiles() -> None:
    rows = sequences(planned(DENSE.build()[0], n_seqs=2, n_ctx=256))
    batch = rows.batch([(0, 3, range(20)), (1, 0, range(2)), (1, 7, [1])])
    assert inputs.query_tiles(batch, 16) == [(0, 16), (16, 4), (20, 2), (22, 1)]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"ids": [64]}, "vocabulary"),
        ({"positions": [4096]}, "block table"),
        ({"seqs": [1]}, "no block table"),
        ({"out_rows": [1]}, "outside the batch"),
    ],
)
def test_a_batch_that_would_lead_kernels_astray_is_refused(change, rule) -> None:
    from dataclasses import replace

    import numpy as np

    plan = planned(DENSE.build()[0])
    batch = replace(sequences(plan).batch([(0, 0, [1])]), **{name: np.array(v, np.int32) for name, v in change.items()})
    with pytest.raises(AssertionError, match=rule):
        inputs.check(batch, plan.shape, 64)


def test_buckets_stay_within_the_micro_batch() -> None:
    from dataclasses import replace

    shape = planned(DENSE.build()[0]).shape
    assert inputs.buckets(shape) == {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
    assert inputs.buckets(replace(shape, n_ubatch=3)) == {1: 1, 2: 2}


def test_names_of_devices() -> None:
    assert CudaDevice("CUDA3", ARCH).index == 3
