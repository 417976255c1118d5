"""Translation units, and the cache of machine code: what it depends on, and that a bad folder only costs time."""

from pathlib import Path

import pytest

from ggrun.runtime.cuda import sources
from ggrun.runtime.cuda.nvrtc import CompileError, Nvrtc, NvrtcMissing
from tests.gpu.emulation.build import Standins

TEXTS = {
    "one.cuh": '#pragma once\n#include "shared.cuh"\n#define KERNEL_one(T) extern "C" __global__ void one__##T(T* y) { *y = VALUE; }\n',
    "shared.cuh": "#define VALUE 3\n",
    "apart.cuh": "#error never included\n",
}


@pytest.fixture
def compiler(standins: Standins) -> Nvrtc:
    return Nvrtc(str(standins.nvrtc))


def test_a_unit_is_its_file_and_a_line_a_kernel() -> None:
    unit = sources.unit("one.cuh", ["one__int", "one__float"], TEXTS)
    assert unit.text == '#include "one.cuh"\nKERNEL_one(int)\nKERNEL_one(float)\n'
    assert list(unit.headers) == ["one.cuh", "shared.cuh"]


def test_every_file_is_found_once_and_every_base_has_one_file() -> None:
    assert "primitives.cuh" in sources.texts()
    bases = [base for text in sources.texts().values() for base in sources.bases_of(text)]
    assert len(bases) == len(set(bases))
    assert [unit.kernels for unit in sources.units(["add", "add", "rope"])] == [("rope",), ("add",)]
    with pytest.raises(sources.UnknownKernel, match="nothing__Q4_K"):
        sources.units(["nothing__Q4_K"])


def test_compiled_once(compiler: Nvrtc, tmp_path: Path) -> None:
    unit = sources.unit("one.cuh", ["one__int"], TEXTS)
    first, second = (sources.compile_unit(unit, "sm_86", compiler, tmp_path / "new") for _ in range(2))
    assert (first.compiled, second.compiled) == (True, False)
    assert first.image == second.image
    assert [path.name.split("-")[:2] for path in (tmp_path / "new").iterdir()] == [["sm_86", "one"]]


def test_what_machine_code_depends_on(compiler: Nvrtc) -> None:
    def key(target: str = "sm_86", kernel: str = "one__int", **changed: str) -> str:
        texts = TEXTS | {f"{name}.cuh": text for name, text in changed.items()}
        return sources._key(sources.unit("one.cuh", [kernel], texts), target, compiler)

    assert key(apart="#error anything") == key()
    assert len({key(), key("sm_90"), key(kernel="one__float"), key(shared="#define VALUE 4\n")}) == 4


@pytest.mark.parametrize("what", ["a file", "damaged"])
def test_a_folder_that_cannot_be_used(compiler: Nvrtc, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "cache"
    if what == "a file":
        folder.write_text("in the way")
    unit = sources.unit("one.cuh", ["one__int"], TEXTS)
    if what == "damaged":
        (folder / f"{sources._key(unit, 'sm_86', compiler)}.cubin").mkdir(parents=True)
    module = sources.compile_unit(unit, "sm_86", compiler, folder)
    assert module.compiled
    assert module.image[:4] == b"\x7fELF"


def test_old_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "KEEP", 2)
    for name in "abcd":
        (tmp_path / f"{name}.cubin").write_bytes(b"")
    sources._remove_old(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_compilers_words_are_shown(compiler: Nvrtc, tmp_path: Path) -> None:
    broken = TEXTS | {"shared.cuh": "#define VALUE undeclared_name\n"}
    with pytest.raises(CompileError, match=r"one\.cu does not compile for sm_86 .*\n(.*\n)*.*undeclared_name"):
        sources.compile_unit(sources.unit("one.cuh", ["one__int"], broken), "sm_86", compiler, tmp_path)


def test_targets(compiler: Nvrtc) -> None:
    assert [compiler.target(cc) for cc in (61, 86, 88, 104, 121, 130)] == ["sm_61", "sm_86", "sm_87", "sm_103", "sm_121", "compute_121"]
    with pytest.raises(NvrtcMissing, match=r"3\.7; this mends it: pip install"):
        compiler.target(37)
