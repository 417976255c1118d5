"""A process that holds one engine with one file: requests and answers are lines of JSON; between them it sleeps."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from ggrun.errors import GgrunError


class Worker:
    """Started by a command; `ask` waits for the answer, so that of several workers only one computes. Closes with the `with` block."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | dict(environment or {}),
            )  # fmt: skip

    def ask(self, do: str, **request: Any) -> Any:
        """The answer to a request. GgrunError when the worker has died or says that it failed."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise GgrunError(f"the process that measures died while asked to {do}; its last words are in {self._log}")
        return json.loads(line)

    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        assert self._process.stdout
        if kind:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
