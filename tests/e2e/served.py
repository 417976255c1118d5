"""Runs the real server in a process of its own, as `ggrun serve` starts it, at a port of its own choice."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.command import environment

START_SECONDS = 120


@dataclass
class Served:
    """A running server. url: without a slash at its end; said: the lines it wrote so far."""

    process: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        """Status and JSON of what a path answers."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def frames(self, path: str, body: Any) -> list[Any]:
        """What a stream of server-sent events says: JSON, or the text that is none."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            lines = [line.decode().strip() for line in response]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Served]:
    """`ggrun serve ARGUMENTS`, ended when the block ends."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "ggrun", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", env=environment(PYTHONPATH=path)
    )
    served = Served(process)
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            served.said.append(line.rstrip())
            if found := re.search(r"listening at (http://[^\s,]+)", line):
                served.url = found[1]
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert ready.wait(START_SECONDS), "the server does not start"
        assert served.url, "\n".join(served.said)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
