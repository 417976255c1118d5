"""Every op of the CPU executor against the NumPy reference, buffer by buffer, in small whole programs of odd shapes."""

from dataclasses import replace

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.plan.device import MissingKernels
from ggrun.program.params import Add
from ggrun.program.program import Op
from ggrun.runtime.reference import ReferenceExecutor
from quant.format import format_by_name
from tests.cpu_programs import Model, Sequences, compare_buffers, executor

F16_STORE = 2e-6  # NMSE after a KV cache in float16; everything else is float32
VARIANTS = {
    "plain": Model(),
    "neox": Model(style="neox"),
    "partial rotation": Model(n_rot=10),
    "odd head": Model(head_dim=24, head_dim_v=24, n_rot=24),
    "tiny odd head": Model(head_dim=6, head_dim_v=10, n_rot=6, n_head=3, n_head_kv=1),
    "values wider than keys": Model(head_dim=16, head_dim_v=48),
    "one KV head of eight": Model(n_head=8, n_head_kv=1),
    "as many KV heads": Model(n_head=3, n_head_kv=3),
    "window": Model(window=7),
    "window across blocks": Model(window=40),
    "softcap": Model(softcap=0.5),
    "bias": Model(bias=True),
    "odd widths": Model(n_embd=72, n_ff=37),
    "experts": Model(n_expert=5, n_used=2),
    "one expert of many": Model(n_expert=9, n_used=1),
    "all experts": Model(n_expert=3, n_used=3, n_ff=40),
}


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.square(got.astype(np.float64) - want).sum() / np.square(want.astype(np.float64)).sum())


def close(op, name, got, want) -> None:
    if want.dtype == np.int32:
        np.testing.assert_array_equal(got, want, err_msg=name)
    else:
        assert nmse(got.reshape(want.shape), want) < F16_STORE, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_buffer(variant: str) -> None:
    """A prompt over several blocks, two sequences, and then a batch that mixes a long chunk with a single token."""
    rng = np.random.default_rng(1)
    program, tensors = VARIANTS[variant].build()
    seqs = Sequences(2, 128)
    a, b = rng.integers(0, 64, (2, 100))
    batches = [seqs.batch([(0, 0, a[:50]), (1, 0, b[:13])], rows=[49]), seqs.batch([(1, 13, b[13:60]), (0, 50, a[50:51])], rows=[0, 47])]
    compare_buffers(program, tensors, batches, close, n_seqs=2)


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "f16"), ("f16", "q4_0"), ("f16", "f16")])
@pytest.mark.parametrize("window", [0, 40])
def test_kv_types(type_k: str, type_v: str, window: int) -> None:
    """Attention over quantized keys and values is near the reference, which rounds them alike: a number that falls to the other side
    is rare, and off by one step."""
    program, tensors = Model(head_dim=64, head_dim_v=32, n_rot=64, n_layer=1, window=window).build()
    a = np.random.default_rng(1).integers(0, 64, 120)
    seqs = Sequences(1, 128)
    reference = ReferenceExecutor(program, tensors, 8, type_k, type_v)
    with executor(program, tensors, type_k=type_k, type_v=type_v) as cpu:
        for at, n in ((0, 50), (50, 1), (51, 60)):
            batch = seqs.batch([(0, at, a[at : at + n])])
            assert nmse(cpu.run(batch), reference.run(batch)) < F16_STORE


def test_kv_types_need_whole_groups() -> None:
    program, tensors = Model().build()
    with pytest.raises(GgrunError, match="-ctv q4_0 needs heads of a multiple of 32"), executor(program, tensors, type_v="q4_0"):
        pass


@pytest.mark.parametrize("fmt", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_quantized_logits(fmt: str) -> None:
    """With quantized weights the error is that of rounding activations to bytes."""
    program, tensors = Model(fmt, n_ff=64, n_expert=4).build()
    errors = []

    def note(op, name, got, want) -> None:
        if want.dtype == np.float32:
            errors.append(nmse(got.reshape(want.shape), want))

    compare_buffers(program, tensors, [Sequences(1, 64).batch([(0, 0, range(40))])], note)
    assert errors[-1] < (1e-3 if fmt.startswith("Q") else 1e-5)
    assert errors[-1] > 0


def test_no_wanted_rows() -> None:
    """A prompt's chunk wants no logits: the head's steps have nothing to do, and what follows is as if it had been one batch."""
    program, tensors = Model().build()
    seqs = Sequences(1, 64)
    with executor(program, tensors) as cpu:
        assert cpu.run(seqs.batch([(0, 0, range(20))], rows=[])).shape == (0, 64)
        apart = cpu.run(seqs.batch([(0, 20, [3])])).copy()
        together = cpu.run(seqs.batch([(0, 0, [*range(20), 3])], rows=[20]))
        np.testing.assert_array_equal(apart, together)


def test_batches_that_would_leave_the_arenas_are_refused() -> None:
    program, tensors = Model().build()
    seqs = Sequences(2, 64)
    good = seqs.batch([(0, 0, range(20)), (1, 7, range(20))], rows=range(4))
    wrong = {
        "vocabulary": [replace(good, ids=good.ids + 64), replace(good, ids=good.ids - 1)],
        "no block table": [replace(good, seqs=good.seqs + 1), replace(good, seqs=good.seqs - 1)],
        "outside its sequence's block table": [replace(good, positions=good.positions + 38), replace(good, positions=good.positions - 1)],
        "must rise": [replace(good, positions=good.positions[::-1]), replace(good, positions=np.zeros_like(good.positions))],
        "outside the KV arena": [replace(good, tables=good.tables + 1000), replace(good, tables=good.tables - 2)],
        "must follow one another": [seqs.batch([(0, 0, [1]), (1, 0, [1]), (0, 1, [1])], rows=range(2))],
        "logit row": [replace(good, out_rows=good.out_rows + 40), replace(good, out_rows=good.out_rows - 1)],
        "65 tokens": [seqs.batch([(0, 0, range(33)), (1, 0, range(32))], rows=[0])],
        "5 logit rows": [replace(good, out_rows=np.arange(5, dtype=np.int32))],
        "for each token": [replace(good, seqs=good.seqs[1:])],
    }
    with executor(program, tensors, n_seqs=2, n_ctx=128, n_logits=4) as cpu:
        cpu.run(good)
        for sentence, batches in wrong.items():
            for batch in batches:
                with pytest.raises(AssertionError, match=sentence):
                    cpu.run(batch)
        cpu.run(good)


def test_a_router_of_nonsense_still_uses_an_expert_once() -> None:
    """NaN logits (a damaged file) must not put two slots of a token on one expert: the room for a group counts on it."""
    model = Model(n_expert=5, n_used=3, n_layer=1)
    program, tensors = model.build()
    tensors["0.route.weight"].raw.view(np.float32).reshape(5, -1)[[0, 1, 3, 4]] = np.nan
    (route,) = (op for op in program.ops if op.kind == "route")
    with executor(program, tensors, reuse=False) as cpu:
        cpu.run(Sequences(1, 64).batch([(0, 0, range(64))]))
        chosen = np.sort(cpu.read_buffer(route.outputs[0], 64), -1)
    assert (chosen[:, 1:] > chosen[:, :-1]).all()
    assert chosen.min() >= 0
    assert chosen.max() < 5
    assert (chosen == 2).any(-1).all()


def test_missing_kernels_are_named_all_at_once() -> None:
    program, tensors = Model().build()
    weights = {n: replace(w, format=format_by_name("F16")) if n.endswith("norm") else w for n, w in program.weights.items()}
    with pytest.raises(MissingKernels, match="rms_norm with F16"), executor(replace(program, weights=weights), tensors):
        pass
    ops = (*program.ops, Op("convolve", (), (), (), Add(), "head"))
    with pytest.raises(MissingKernels, match="convolve"), executor(replace(program, ops=ops), tensors):
        pass
