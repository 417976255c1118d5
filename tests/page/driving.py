"""What the page's tests drive: a tab that remembers what must not happen, `ggrun serve`, and a server that answers as a test says."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPO = Path(__file__).resolve().parents[2]


class Tab:
    """A page of the browser that remembers what must not happen: errors on the console, requests to other hosts."""

    def __init__(self, page: Any, base: str) -> None:
        self.page, self.base = page, base
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.expected: tuple[str, ...] = ()  # words of errors that the test provokes
        page.set_default_timeout(15_000)
        page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.context.on("request", self._note)
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _note(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and f"{parts.scheme}://{parts.netloc}" != self.base:
            self.strangers.append(request.url)

    def open(self, path: str = "/") -> Any:
        self.page.goto(self.base + path)
        self.page.wait_for_selector(".empty, .message")
        return self.page

    def send(self, text: str) -> None:
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def answered(self) -> Any:
        """Wait until the answer is complete; its element."""
        self.page.wait_for_selector(".message.assistant:last-child:not(.running)")
        self.page.wait_for_selector("#send:not(.stop)")
        return self.page.locator(".message.assistant").last

    def ask(self, text: str) -> Any:
        n = self.page.locator(".message.user").count()
        self.send(text)
        self.page.wait_for_function("n => document.querySelectorAll('.message.user').length > n", arg=n)
        return self.answered()

    def check(self) -> None:
        assert not self.strangers, f"requests to other hosts: {self.strangers}"
        unexpected = [error for error in self.errors if not any(word in error for word in self.expected)]
        assert not unexpected, f"on the console: {unexpected}"


class Served:
    """`ggrun serve` in a process, on a port of its own."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "ggrun", "serve", "--port", "0", "--temp", "0", "--no-disk-cache", *flags]
        self.process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"listening at (http://[^\s,]+)", line):
                self.base = found[1]
                break
        else:
            raise AssertionError("ggrun serve did not start:\n" + "".join(said))
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0


Delta = dict[str, Any]


@dataclass
class Script:
    """What the scripted server answers: pieces of text or deltas, `pause` seconds apart. Or an error. requests: what was asked."""

    base: str = ""
    pieces: list[str | Delta] = field(default_factory=lambda: ["Hello."])
    pause: float = 0.0
    error: tuple[int, dict[str, Any]] | None = None
    broken: bool = False  # the connection ends in the middle
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "scripted", "state": "loaded"}])
    requests: list[dict[str, Any]] = field(default_factory=list)
    gone: int = 0  # answers whose client went away


def application(script: Script) -> Any:
    """The page's files, and an API that follows the script."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from ggrun.server import page

    async def chat(request: Request) -> Response:
        body = await request.json()
        script.requests.append(body)
        if script.error:
            return JSONResponse({"error": script.error[1]}, script.error[0])
        return StreamingResponse(_stream(script, str(body.get("model", "scripted"))), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": script.models})

    async def status(request: Request) -> Response:
        told = [{"name": m["id"], "state": m["state"], "n_ctx": 4096, "engine": None, "loaded": 1} for m in script.models]
        return JSONResponse({"models": told})

    async def props(request: Request) -> Response:
        params = {"temperature": 0.8, "top_k": 40}
        return JSONResponse({"default_generation_settings": {"params": params}, "chat_template": "{{ enable_thinking }}"})

    small = [Route("/v1/models", models), Route("/status", status), Route("/props", props)]
    return Starlette(routes=[*page.ROUTES, *small, Route("/v1/chat/completions", chat, methods=["POST"])])


async def _stream(script: Script, model: str) -> AsyncIterator[str]:
    def chunk(delta: Delta, **more: Any) -> str:
        reason = more.pop("finish_reason", None)
        return "data: " + json.dumps({"model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}) + "\n\n"

    try:
        yield chunk({"role": "assistant", "content": ""})
        for piece in script.pieces:
            yield chunk({"content": piece} if isinstance(piece, str) else piece)
            await asyncio.sleep(script.pause)
        if script.broken:
            return
        n = len(script.pieces)
        timings = {"cache_n": 40, "prompt_n": 20, "prompt_per_second": 1000.0, "predicted_n": n, "predicted_per_second": 50.0}
        yield chunk({}, finish_reason="stop", timings=timings, usage={"total_tokens": 60 + n})
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        script.gone += 1
        raise
