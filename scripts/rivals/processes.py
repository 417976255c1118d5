"""Whole processes: the time from `exec` to the first token, and the private memory after it.

ggrun is its command line, and the clock stops at the first byte of its answer. llama.cpp has no command in the rival's package: its worker
loads the library through ctypes, and its clock runs from there (Python's own start is not counted) to the first token's logits.
Both take the prompt as it stands and a context of 4096.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from ggrun.errors import GgrunError

from .environments import Say, rival_python
from .matrix import DEFAULT, Group
from .results import OURS, Result
from .speed import HERE, now

ROUNDS = 5
WARM, COLD_FILE, COLD_KERNELS = "first token, file in page cache", "first token, file not in page cache", "first token, empty kernel cache"
PRIVATE, BEYOND = "private memory after a token", "private memory beyond the ledger's arenas"


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def answer(command: list[str | Path], environment: Mapping[str, str]) -> str:
    """What a command prints. GgrunError with its last line when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | dict(environment), check=False)
    if done.returncode:
        raise GgrunError(f"`{command[1]}` failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return done.stdout


def our_first_token(model: Path, threads: int, cache: str | None = None) -> float:
    """Seconds to the first byte of `ggrun run`'s answer, or to its end where the one token has no text."""
    more = {"PYTHONPATH": str(HERE.parents[1])} | ({"GGRUN_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-m", "ggrun", "run", str(model), "-t", str(threads), "-c", "4096"]
    command += ["-p", "Hello", "-n", "1", "--temp", "0", "--ignore-eos", "--no-conversation"]
    start = monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | more) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = monotonic() - start
        process.stdout.read()
    if process.returncode:
        raise GgrunError(f"`ggrun run {model}` failed")
    return seconds


class Rival:
    """llama.cpp's start."""

    def __init__(self, group: Group, model: Path, say: Say) -> None:
        python = rival_python(group.build, say)
        self._command: list[str | Path] = [python, HERE / "llama_worker.py", model, str(group.threads), "start"]

    def start(self) -> dict[str, float]:
        """begun, ended: seconds of one clock; private: bytes of anonymous memory after the first token."""
        told: dict[str, float] = json.loads(answer(self._command, {}))
        return told

    def first_token(self) -> float:
        told = self.start()
        return told["ended"] - told["begun"]


def measure_start(group: Group, model: Path, say: Say, keep: Callable[[Result], None]) -> None:
    """Warm, with the file dropped from the page cache before each start, and (ours alone) with an empty kernel cache."""
    rival = Rival(group, model, say)
    our_first_token(model, group.threads)
    rival.first_token()
    for test in WARM, COLD_FILE:
        samples: dict[str, list[float]] = {OURS: [], str(DEFAULT): []}
        for _ in range(ROUNDS):
            for engine in samples:
                if test == COLD_FILE:
                    drop_from_page_cache(model)
                samples[engine].append(our_first_token(model, group.threads) if engine == OURS else rival.first_token())
        keep(Result(group.name, test, group.file, group.threads, "s", samples, now()))
    cold = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(our_first_token(model, group.threads, cache))
    keep(Result(group.name, COLD_KERNELS, group.file, group.threads, "s", {OURS: cold}, now()))


def measure_memory(group: Group, model: Path, say: Say, keep: Callable[[Result], None]) -> None:
    """Private anonymous memory in MB, and how much of ours is not an arena of the ledger."""
    rival = Rival(group, model, say)
    ours: list[str | Path] = [sys.executable, HERE / "ggrun_memory.py", model, str(group.threads)]
    told = [json.loads(answer(ours, {})) for _ in range(2)]
    theirs = [rival.start()["private"] / 1e6 for _ in range(2)]
    private = {OURS: [one["private"] / 1e6 for one in told], str(DEFAULT): theirs}
    keep(Result(group.name, PRIVATE, group.file, group.threads, "MB", private, now()))
    beyond = {OURS: [(one["private"] - one["arenas"]) / 1e6 for one in told]}
    keep(Result(group.name, BEYOND, group.file, group.threads, "MB", beyond, now()))
