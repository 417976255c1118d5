"""Object files: linked without Numba in the next process, and compiled again when they are not whole."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

USE = """
import ctypes, sys
from pathlib import Path
from quant import cpu, objects
from quant.format import format_by_name
objects.keep_in(Path(sys.argv[1]))
kernels = [cpu.matmul_kernel(format_by_name(name), cpu.tiers()[0]) for name in ("Q4_0", "F16")]
kernels += [cpu.get_row_kernel(format_by_name("F16"), cpu.tiers()[0]), cpu.activation_kernel("q8_0", cpu.tiers()[0])]
halves, out = (ctypes.c_uint16 * 4)(0x3C00, 0xC000, 0, 0x3800), (ctypes.c_float * 4)()
call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(kernels[2].address)
call(ctypes.addressof(halves), 4, ctypes.addressof(out))
print("numba" in sys.modules, list(out))
"""


def use(folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", USE, str(folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_cannot_be_kept_is_used_all_the_same(tmp_path: Path) -> None:
    full = tmp_path / "gone"  # a folder that cannot be written to, like one on a full disk
    assert use(full) == "True [1.0, -2.0, 0.0, 0.5]"


def test_second_process_imports_no_numba(tmp_path: Path) -> None:
    assert use(tmp_path) == "True [1.0, -2.0, 0.0, 0.5]"
    assert len(list(tmp_path.iterdir())) == 4
    assert use(tmp_path) == "False [1.0, -2.0, 0.0, 0.5]"


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "gone"])
def test_a_damaged_file_is_never_linked(damage: str, tmp_path: Path) -> None:
    use(tmp_path)
    path = next(tmp_path.glob("get_row.F16.*.o"))
    whole = path.read_bytes()
    damaged = {"cut": whole[:-100], "empty": b"", "one bit": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    assert use(tmp_path) == "True [1.0, -2.0, 0.0, 0.5]"
    assert use(tmp_path) == "False [1.0, -2.0, 0.0, 0.5]"


def test_a_function_needs_nothing_of_python() -> None:
    from quant import objects

    def share(n, parts):
        total = 0
        for i in range(n):
            total += i // max(parts, 1) + n % parts  # Python would raise for parts == 0
        return total

    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(objects.address("test.share", lambda: share))
    assert call(10, 3) == sum(i // 3 + 1 for i in range(10))


PROCESSOR = """
import sys
from quant.processor import processor
found = processor()
assert "numba" not in sys.modules
from numba.core.registry import cpu_target
assert tuple(found) == cpu_target.target_context.codegen().magic_tuple()
"""


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2"},
        {"NUMBA_CPU_NAME": "ivybridge"},
        {"NUMBA_ENABLE_AVX": "0"},
    ],
    ids=str,
)
def test_the_processor_is_the_one_numba_compiles_for(env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROCESSOR], env={**os.environ, "PYTHONPATH": str(REPO), **env}, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
