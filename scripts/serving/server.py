"""A server in a process of its own, from its start to its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180


class Server:
    """Use it as a context manager. words: the command; {port} in them becomes a free port. health: the path that answers 200 when ready."""

    def __init__(self, words: Sequence[str], health: str = "/health", environment: dict[str, str] | None = None) -> None:
        self._words, self._health, self._environment = words, health, environment or {}

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | self._environment
        words = [word.replace("{port}", str(port)) for word in self._words]
        self._process = subprocess.Popen(words, stdout=self._log, stderr=subprocess.STDOUT, env=environment)
        self.process = psutil.Process(self._process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the server did not start: {self.log()[-800:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self.code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.code = self._process.wait()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def log(self) -> str:
        """All it has said."""
        self._log.seek(0)
        return self._log.read()

    @property
    def private_bytes(self) -> int:
        """Memory that is its own."""
        return int(self.process.memory_full_info().uss)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._health, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def ggrun(model: str | None, *flags: str) -> Server:
    """`ggrun serve` of this checkout."""
    return Server([sys.executable, "-m", "ggrun", "serve", *([model] if model else []), "--port", "{port}", *flags])
