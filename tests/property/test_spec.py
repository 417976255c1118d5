"""Damaged metadata of real models: the program is built, or refused with a sentence; nothing else, whatever a value is."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun.errors import GgrunError
from ggrun.gguf import open_gguf
from ggrun.models import build_program
from ggrun.program.program import Weight
from tests.oracle.models import LOCAL

VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64),
    st.integers(-3, 600),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 5000), max_size=5),
    st.lists(st.one_of(st.floats(), st.text(max_size=3)), max_size=3),
)


@cache
def model(name: str) -> tuple[dict[str, object], dict[str, Weight]]:
    with open_gguf(LOCAL / name) as file:
        arch = str(file.metadata["general.architecture"])
        keys = [k for k in file.metadata if k.startswith((arch, "general."))]
        tensors = {t.name: Weight(t.name, t.format, t.dims, t.n_bytes) for t in file.tensors.values()}
        return {k: file.metadata[k] for k in keys}, tensors


@pytest.mark.parametrize("name", ["llama-gqa.Q4_K_M.gguf", "qwen3.Q8_0.gguf"])
@settings(max_examples=400)
@given(data=st.data())
def test_any_value_of_any_key(name: str, data: st.DataObject) -> None:
    metadata, tensors = model(name)
    arch = metadata["general.architecture"]
    absent = ("expert_count", "expert_used_count", "rope.scaling.type", "rope.scaling.factor", "rope.dimension_count")
    extra = [f"{arch}.{key}" for key in absent]
    changed = data.draw(st.dictionaries(st.sampled_from([*metadata, *extra]), VALUE, min_size=1, max_size=3))
    gone = data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=1))
    try:
        build_program({**metadata, **changed}, {n: t for n, t in tensors.items() if n not in gone})
    except GgrunError as error:
        assert str(error)
        assert "\n" not in str(error)
