"""The kernel cache and the pure half of the CPU device, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def python(code: str, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = start(code, cache, **env)
    out, err = done.communicate()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def start(code: str, cache: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    variables = {**os.environ, "PYTHONPATH": str(REPO), "GGRUN_CACHE_DIR": str(cache), **env}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LOAD = """
import sys
from ggrun.runtime.cpu import compile
seen = []
kernels, note = compile.load(["add", "rms_norm", "embed.Q8_0"], None, lambda stage, done, total: seen.append((stage, done, total)))
assert all(k.address for k in kernels.values()) and kernels["embed.Q8_0"].function
print(seen, note)
assert seen or "numba" not in sys.modules
"""


def test_compiled_once_and_announced(tmp_path: Path) -> None:
    first = python(LOAD, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "('compile', 0, 9)" in first.stdout
    assert "('compile', 9, 9)" in first.stdout
    again = python(LOAD, tmp_path)
    assert again.stdout.strip() == "[]"
    (folder,) = (tmp_path / "kernels").iterdir()
    names = sorted(path.name.partition(".")[0] for path in folder.glob("*.o"))
    assert names == ["add", "broken_rule", "dismiss", "embed", "get_row", "lead", "rms_norm", "serve", "touch"]


def test_another_processor_has_another_folder_and_old_ones_go(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    for i in range(5):
        (kernels / f"old{i}").mkdir(parents=True)
        os.utime(kernels / f"old{i}", (i, i))
    code = "from ggrun.runtime.cpu import cache; print(cache.use().folder.name)"
    here = python(code, tmp_path).stdout.strip()
    assert {path.name for path in kernels.iterdir()} == {here, "old3", "old4"}
    other = python(code, tmp_path, GGRUN_CPU_TIER="plain").stdout.strip()
    assert other != here
    assert {path.name for path in kernels.iterdir()} == {here, other, "old4"}


def test_a_folder_that_cannot_be_written_is_replaced_and_said(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("in the way")
    code = "from ggrun.runtime.cpu import cache; c = cache.use(); print(c.folder); print(c.note); assert c.folder.is_dir()"
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    folder, note = done.stdout.splitlines()
    assert str(tmp_path / "kernels") in note
    assert not Path(folder).exists(), "the private folder outlives the process"


def test_first_runs_at_the_same_time(tmp_path: Path) -> None:
    """They share one folder: one compiles, the other waits, and both and a third get what they asked for."""
    processes = [start(LOAD, tmp_path), start(LOAD.replace('"add"', '"take_rows", "embed.Q4_0"'), tmp_path)]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    both = python(LOAD.replace('"add"', '"add", "take_rows", "embed.Q4_0"'), tmp_path)
    assert both.stdout.strip() == "[]"


def test_a_tier_this_processor_lacks_is_an_error_in_words(tmp_path: Path) -> None:
    done = python(LOAD, tmp_path, GGRUN_CPU_TIER="mmx")
    assert "GgrunError: GGRUN_CPU_TIER=mmx" in done.stderr


def test_planning_does_not_import_numba(tmp_path: Path) -> None:
    code = """
import sys
from ggrun.plan.device import Shape
from ggrun.plan.planner import Request, make_plan
from ggrun.program.builder import Builder
from ggrun.program.params import Attention, Route
from ggrun.runtime.cpu.cores import n_cores
from ggrun.runtime.cpu.device import CpuDevice
from quant.format import format_by_name
from dataclasses import dataclass

@dataclass
class T:
    name: str
    dims: tuple
    format: object
    n_bytes: int = 0

q4, f32 = format_by_name("Q4_K"), format_by_name("F32")
extents = [("e", (256, 9), q4), ("w.weight", (256, 256), q4), ("x", (256, 256, 4), q4), ("r.weight", (256, 4), f32)]
tensors = {name: T(name, dims, fmt) for name, dims, fmt in extents}
b = Builder(tensors, 9)
with b.unit("all"):
    x = b.embed("e", 256)
    y = b.linear(x, "w", 256)
    y = b.attention(y, y, y, Attention("kv", 4, 4, 64, 64, 1.0))
    ids, weights = b.route(b.linear(y, "r", 4), Route(4, 2))
    y = b.expert_sum(b.expert_linear(y, ids, "x", 4, 256, 256), weights)
    b.output(b.linear(b.take_rows(y), "out", 9, "e"))
plan = make_plan(b.build(), CpuDevice(), Request(n_threads=n_cores()), 512, {}, 1 << 34)
print(plan.ledger.total(), "numba" in sys.modules, "llvmlite.binding" in sys.modules)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["False", "False"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"GGRUN_CPU_TIER": "plain"},
        {"GGRUN_CPU_TIER": "avx2"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2"},
    ],
    ids=["plain", "avx2", "as on any processor", "as on a Haswell"],
)
def test_lesser_processors(env: dict[str, str], tmp_path: Path) -> None:
    """The programs' tests again, compiled for less than this machine has. Needs a processor that has AVX2 for two of them."""
    if "avx2" in str(env) and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    tests = [f"tests/unit/{name}.py" for name in ("test_cpu_programs", "test_cpu_vectors", "test_cpu_team")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, "GGRUN_CACHE_DIR": str(tmp_path), **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
