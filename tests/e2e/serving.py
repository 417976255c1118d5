"""`ggrun serve` in a process of its own, on a port the system picks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tests.conftest import REPO
from tests.e2e.command import environment

SECONDS = 60  # until it listens


class Served:
    """A running server. said: what it wrote to stderr so far. without: modules that are as if not installed."""

    def __init__(self, *arguments: str | Path, without: Sequence[str] = (), **variables: str) -> None:
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH", ""))))
        program = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r})); from ggrun.cli.app import main; main()"
        command = [sys.executable, "-c", program, "serve", "--port", "0", "--no-disk-cache", *map(str, arguments)]
        self._out = os.memfd_create("stderr")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._out, env=environment(PYTHONPATH=path, **variables)
        )
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"listening at https?://(\S+?):(\d+)", self.said)):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"the server did not start: {self.said}")
            time.sleep(0.02)
        self.host, self.port = found[1], int(found[2])

    @property
    def said(self) -> str:
        return os.pread(self._out, 1 << 20, 0).decode()

    @property
    def n_sockets(self) -> int:
        """How many sockets the process has open."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        names = []
        for file in folder.iterdir():
            with suppress(OSError):  # closed meanwhile
                names.append(os.readlink(file))
        return sum(name.startswith("socket:") for name in names)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._out)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 30, **headers: str) -> tuple[int, Any]:
        """(status, JSON or text) of one request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            data = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
            connection.request(method, path, data, ({"content-type": "application/json"} if data is not None else {}) | named)
            answer = connection.getresponse()
            text = answer.read()
            is_json = (answer.getheader("content-type") or "").startswith("application/json")
            return answer.status, msgspec.json.decode(text) if is_json else text.decode()
        finally:
            connection.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self.ask("GET", path)[1]

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        """Status and JSON of what a path answers."""
        return self.ask("POST", path, body, timeout)

    def frames(self, path: str, body: Any) -> list[Any]:
        """What a stream of server-sent events says: JSON, or the text that is none."""
        lines = str(self.ask("POST", path, body, 60)[1]).splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [item if item == "[DONE]" else msgspec.json.decode(item) for item in data]

    def connect(self, timeout: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    @contextmanager
    def stream(self, **body: Any) -> Iterator[socket.socket]:
        """A connection that has begun to receive an endless completion's stream."""
        body = {"prompt": "The json module", "stream": True, "ignore_eos": True, "max_tokens": -1} | body
        data = msgspec.json.encode(body)
        with self.connect() as sock:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
            )
            sock.sendall(head.encode() + data)
            seen = b""
            while b"data: " not in seen:
                more = sock.recv(4096)
                assert more, seen
                seen += more
            yield sock

    def idle(self, seconds: float = 5) -> bool:
        """Whether every slot is idle, at the latest after so long."""
        end = time.monotonic() + seconds
        while any(slot["is_processing"] for slot in self.ask("GET", "/slots")[1]):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


def rest_of(sock: socket.socket) -> bytes:
    """Everything until the other end closes."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data
