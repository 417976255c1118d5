"""The ledger's line for the process is what a process really takes beside the arenas, with a large vocabulary too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.runtime.cpu.device import CpuDevice
from tests.conftest import REPO, shared_path

TALK = """
import sys
from pathlib import Path
from ggrun import Engine
from ggrun.gguf import open_gguf
from ggrun.text import load_tokenizer
with Engine.open(n_ctx=1024) as engine:
    engine._executor.settle()
    engine.chat([{"role": "user", "content": "What does zip do?"}]).wait()
    with open_gguf(sys.argv[1]) as file:
        tokenizer = load_tokenizer(file.metadata)
        tokenizer.decode(tokenizer.encode(Path(sys.argv[2]).read_text()))
        arenas = engine._executor.allocated_bytes
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        anonymous = next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))
        print(anonymous - arenas, engine.spec.n_vocab + tokenizer.n_vocab, "numba" in sys.modules)
"""


def talk(**env: str) -> tuple[int, int, bool]:
    """Bytes beside the arenas, tokens of both vocabularies, and whether kernels were compiled."""
    arguments = [str(shared_path("vocab", "ggml-vocab-qwen2.gguf")), str(REPO / "docs" / "cpu-runtime.md")]
    variables = {**os.environ, "PYTHONPATH": str(REPO), **env}
    done = subprocess.run([sys.executable, "-c", TALK, *arguments], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, n_vocab, compiled = done.stdout.split()
    return int(taken), int(n_vocab), compiled == "True"


def test_a_start_with_compiled_kernels() -> None:
    talk()  # whatever is not compiled yet
    taken, n_vocab, compiled = talk()
    assert not compiled
    assert n_vocab > 150_000
    assert taken <= CpuDevice().process_bytes(n_vocab) <= 350 << 20


@pytest.mark.slow
def test_a_first_start(tmp_path: Path) -> None:
    taken, n_vocab, compiled = talk(GGRUN_CACHE_DIR=str(tmp_path))
    assert compiled
    assert taken <= CpuDevice().process_bytes(n_vocab)
