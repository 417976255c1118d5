"""Builder and verify: what is wrong with a file or an architecture function is said by name."""

from dataclasses import replace

import numpy as np
import pytest

from ggrun.models import build_program
from ggrun.models.spec import SpecError
from ggrun.program import params as p
from ggrun.program.builder import Builder
from ggrun.program.dump import dump
from ggrun.program.program import Program, ProgramError, Weight
from ggrun.program.rope import frequencies
from ggrun.program.verify import verify
from quant.format import format_by_name

F32 = format_by_name("F32")


def tensors(**dims: tuple[int, ...]) -> dict[str, Weight]:
    named = {name.replace("__", "."): d for name, d in dims.items()}
    return {name: Weight(name, F32, d, 4 * int(np.prod(d))) for name, d in named.items()}


SMALL = tensors(table=(8, 16), norm=(8,), out__weight=(8, 16), out__bias=(16,))


def small() -> Program:
    b = Builder(SMALL, 16)
    with b.unit("embed"):
        x = b.embed("table", 8)
    with b.unit("head"):
        b.output(b.linear(b.rms_norm(b.take_rows(x), "norm", 1e-5), "out", 16))
    return b.build()


def test_a_good_program_verifies_and_dumps() -> None:
    program = verify(small())
    text = "\n".join(dump(program))
    assert "head:" in text
    assert "linear(" in text
    assert program.ops[-1].params == p.Linear(bias=True)
    assert [op.kind for op in program.ops if op.unit == "head"] == ["take_rows", "rms_norm", "linear"]


def test_shapes_and_missing_tensors_are_named() -> None:
    b = Builder(SMALL, 16)
    with pytest.raises(ProgramError, match=r"table is 8 x 16 .* 9 x 16"):
        b.embed("table", 9)
    with pytest.raises(ProgramError, match="tensor nowhere is missing"):
        b.embed("nowhere", 8)


def test_unused_tensors_are_refused() -> None:
    b = Builder({**SMALL, **tensors(extra=(4,))}, 16)
    with b.unit("embed"):
        b.embed("table", 8)
    with pytest.raises(ProgramError, match=r"does not use: .*extra"):
        b.build()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o: replace(o, kind="nonsense"), "no such op kind"),
        (lambda o: replace(o, inputs=()), "takes 1 inputs"),
        (lambda o: replace(o, params=p.Add()), "not Linear"),
        (lambda o: replace(o, inputs=("nothing",)), "unknown buffer nothing"),
        (lambda o: replace(o, weights=("nothing",)), "unknown weight nothing"),
        (lambda o: replace(o, unit="embed"), "outside its unit"),
    ],
)
def test_verify_names_what_is_wrong(change: object, says: str) -> None:
    good = small()
    bad = replace(good, ops=(*good.ops[:-1], change(good.ops[-1])))  # type: ignore[operator]
    with pytest.raises(ProgramError, match=says):
        verify(bad)


def test_a_buffer_is_written_once() -> None:
    good = small()
    with pytest.raises(ProgramError, match="a second time"):
        verify(replace(good, ops=(*good.ops, good.ops[-1])))


def test_metadata_errors_name_the_key() -> None:
    with pytest.raises(SpecError, match=r"general\.architecture"):
        build_program({}, {})
    with pytest.raises(SpecError, match=r"'mamba' is not supported; .*llama"):
        build_program({"general.architecture": "mamba"}, {})
    weights = tensors(token_embd__weight=(8, 16))
    with pytest.raises(SpecError, match=r"llama\.block_count"):
        build_program({"general.architecture": "llama"}, weights)
    with pytest.raises(SpecError, match=r"llama\.block_count is of type str"):
        build_program({"general.architecture": "llama", "llama.block_count": "2"}, weights)
    with pytest.raises(ProgramError, match="vocabulary-only"):
        build_program({"general.architecture": "llama"}, {})


def test_rope_frequencies() -> None:
    plain = p.Rope(1, 8, 8, "norm", 10000.0)
    freq, magnitude = frequencies(plain)
    assert magnitude == 1.0
    np.testing.assert_allclose(freq, [1, 0.1, 0.01, 0.001])
    linear, _ = frequencies(replace(plain, scaling=p.RopeScaling("linear", 4.0)))
    np.testing.assert_allclose(linear, freq / 4)
    divided, _ = frequencies(plain, np.array([1, 2, 4, 8], np.float32))
    np.testing.assert_allclose(divided, freq / [1, 2, 4, 8])
    yarn, magnitude = frequencies(replace(plain, scaling=p.RopeScaling("yarn", 4.0, n_ctx_orig=4096)))
    assert yarn[0] == freq[0]  # fast pairs keep their angle
    assert yarn[3] == pytest.approx(freq[3] / 4)  # slow ones are interpolated
    assert magnitude == pytest.approx(1.1386294)
