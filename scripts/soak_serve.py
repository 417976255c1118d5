#!/bin/sh
""":'
# Started as a command: run again by the Python of the checkout's own test environment.
. "$(dirname "$(readlink -f "$0")")/environment.sh"
environment test
exec "$env/bin/python" "$0" "$@"

Keeps `ggrun serve` busy with mixed requests of many clients that come and go, and checks every answer.

    scripts/soak_serve.py [MODEL.gguf] [--minutes 5] [--clients 16] [--seed 0] [-- more flags of ggrun serve]

Every kind of request is answered once alone first; from then on the same request must get the same answer, whatever runs beside it.
Clients also go away in the middle of answers, send half a request, and are killed with their connections. At the end no slot is taken, no
block of the cache is held, and the server's memory is what it was after the first minute. Exit status 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import httpx  # noqa: E402
from serving.client import LIMITS  # noqa: E402
from serving.server import Server, ggrun  # noqa: E402

QUESTIONS = (
    "What does len do?",
    "What does str.split do?",
    "What is a dict?",
    "How do I sort a list?",
    "What does open do?",
    "What is json.loads?",
)
SYSTEM = "You answer questions about Python's standard library in one sentence. " * 12
FIELDS = {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": FIELDS, "required": ["name", "n"]}
PARAMETERS = {"type": "object", "properties": {"word": {"enum": ["a", "b"]}}, "required": ["word"]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}
MOST_GROWTH = 48 << 20  # bytes of private memory after the first minute: fragments of the allocator
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """Something a client asks: the path, the body, and how the answer is read from a whole response."""

    kind: str
    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]


def _message(answer: Any) -> Any:
    return [(c["message"].get("content"), [t["function"] for t in c["message"].get("tool_calls") or ()]) for c in answer["choices"]]


def _completion(answer: Any) -> Any:
    return [(c["text"], c["logprobs"]["token_logprobs"]) for c in answer["choices"]]


# kind: the path, and how an answer is read
KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "chat": ("/v1/chat/completions", _message),
    "completion": ("/v1/completions", _completion),
    "embedding": ("/v1/embeddings", lambda a: a["data"][0]["embedding"]),
    "messages": ("/v1/messages", lambda a: a["content"][0]["text"]),
    "ollama": ("/api/chat", lambda a: a["message"]["content"]),
    "responses": ("/v1/responses", lambda a: a["output"][0]["content"][0]["text"]),
}


def requests() -> list[Request]:
    """Every kind, deterministic each."""
    found = []
    for i, question in enumerate(QUESTIONS):
        user = {"role": "user", "content": question}
        chat: dict[str, Any] = {"messages": [user], "temperature": 0, "max_tokens": 24 + 8 * i}
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("chat", chat),
            ("chat", {**chat, "messages": [{"role": "system", "content": SYSTEM}, user]}),
            ("chat", {**chat, "temperature": 0.9, "seed": i, "n": 2}),
            ("chat", {**chat, "max_tokens": 80, "response_format": schema}),
            ("chat", {**chat, "tools": [TOOL], "tool_choice": "required"}),
            ("completion", {"prompt": question * 20, "max_tokens": 16, "temperature": 0, "logprobs": 2}),
            ("embedding", {"input": question}),
            ("messages", {"model": "x", "max_tokens": 20, "messages": [user], "temperature": 0}),
            ("ollama", {"model": "x", "messages": [user], "stream": False, "options": {"temperature": 0, "num_predict": 20}}),
            ("responses", {"input": question, "temperature": 0, "max_output_tokens": 20}),
        ]
        found += [Request(kind, KINDS[kind][0], body, KINDS[kind][1]) for kind, body in bodies]
    return found


@dataclass
class Soak:
    """What was asked and what came of it."""

    url: str
    random: random.Random
    right: dict[int, Any] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def alone(self, wanted: list[Request]) -> None:
        """The answers to compare with, and that a stream says the same."""
        async with httpx.AsyncClient(timeout=120) as client:
            for i, one in enumerate(wanted):
                self.right[i] = await self._whole(client, one)

    async def client(self, wanted: list[Request], until: float) -> None:
        """One client after the other, each with a connection of its own."""
        while monotonic() < until:
            async with httpx.AsyncClient(timeout=120, limits=LIMITS) as client:
                for _ in range(self.random.randrange(1, 6)):
                    index = self.random.randrange(len(wanted))
                    how = self.random.random()
                    try:
                        if how < 0.6:
                            await self._check(client, wanted, index)
                        elif how < 0.8:
                            await self._leave(client, wanted[index])
                        elif how < 0.9:
                            await self._half(wanted[index])
                        else:
                            await self._killed(client, wanted[index])
                    except (httpx.HTTPError, OSError, KeyError, ValueError, IndexError, TypeError) as error:
                        self.wrong.append(f"{wanted[index].kind}: {type(error).__name__}: {error!s:.200}")
                    if len(self.wrong) > 20:
                        return

    async def _whole(self, client: httpx.AsyncClient, one: Request) -> Any:
        answer = await client.post(self.url + one.path, json=one.body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text:.200}")
        return one.read(answer.json())

    async def _check(self, client: httpx.AsyncClient, wanted: list[Request], index: int) -> None:
        got = await self._whole(client, wanted[index])
        self.done[wanted[index].kind] += 1
        if got != self.right[index]:
            self.wrong.append(f"{wanted[index].kind}: {json.dumps(got)[:200]} instead of {json.dumps(self.right[index])[:200]}")

    async def _leave(self, client: httpx.AsyncClient, one: Request) -> None:
        """Go away after a piece or a moment."""
        if "stream" not in one.body and one.path == "/v1/embeddings":
            return
        async with client.stream("POST", self.url + one.path, json={**one.body, "stream": True}) as answer:
            async for _ in answer.aiter_raw():
                if self.random.random() < 0.5:
                    break
        self.done["left"] += 1

    async def _killed(self, client: httpx.AsyncClient, one: Request) -> None:
        """A task that dies while it waits for a whole answer."""
        task = asyncio.create_task(client.post(self.url + one.path, json=one.body))
        await asyncio.sleep(self.random.random() * 0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.done["killed"] += 1

    async def _half(self, one: Request) -> None:
        """A request that stops in the middle, on a connection that is reset."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(one.body).encode()
        lines = (f"POST {one.path} HTTP/1.1", f"host: {host}", "content-type: application/json", f"content-length: {len(body)}", "", "")
        data = "\r\n".join(lines).encode() + body
        writer.write(data[: self.random.randrange(1, len(data))])
        await writer.drain()
        await asyncio.sleep(self.random.random() * 0.05)
        writer.transport.abort()
        self.done["half"] += 1


async def settled(url: str) -> list[str]:
    """What is still taken some seconds after the last client has gone."""
    async with httpx.AsyncClient(timeout=30) as client:
        deadline = monotonic() + SETTLE_SECONDS
        while True:
            busy = [s["id"] for s in (await client.get(url + "/slots")).json() if s["is_processing"]]
            text = (await client.get(url + "/metrics")).text
            held = {line.split("{")[0].split()[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}
            used, waiting = held["ggrun_kv_used_tokens"], held["ggrun_requests_waiting"]
            if not busy and used == 0 and not waiting:
                return []
            if monotonic() > deadline:
                return [f"slots {busy} are still busy, {used:.0f} tokens of the cache are held, {waiting:.0f} requests wait"]
            await asyncio.sleep(0.2)


async def soak(server: Server, minutes: float, clients: int, seed: int) -> list[str]:
    """Everything wrong that was seen."""
    one, wanted = Soak(server.url, random.Random(seed)), requests()
    await one.alone(wanted)
    begin = monotonic()
    first = begin + min(60.0, 20 * minutes)
    await asyncio.gather(*(one.client(wanted, first) for _ in range(clients)))
    problems = await settled(server.url)
    before = server.private_bytes
    await asyncio.gather(*(one.client(wanted, begin + 60 * minutes) for _ in range(clients)))
    problems += await settled(server.url)
    await one.alone(wanted)
    after = server.private_bytes
    print(f"{sum(one.done.values())} requests of {clients} clients in {monotonic() - begin:.0f} s: {dict(one.done)}")
    print(f"private memory: {before / 2**20:.1f} MiB after the first part, {after / 2**20:.1f} MiB at the end")
    if after - before > MOST_GROWTH:
        problems.append(f"memory grew by {(after - before) / 2**20:.1f} MiB")
    if faults := [line for line in server.log().splitlines() if line.startswith("error:")]:
        problems += [f"the server said: {line}" for line in faults[:5]]
    return [*one.wrong, *problems]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="more flags of ggrun serve, after --")
    args = parser.parse_args()
    with ggrun(args.model, "--metrics", "--no-disk-cache", *args.flags) as server:
        problems = asyncio.run(soak(server, args.minutes, args.clients, args.seed))
    if server.code:
        problems.append(f"the server ended with status {server.code}: {server.log()[-300:]}")
    for problem in problems:
        print(f"WRONG: {problem}")
    print("all right" if not problems else f"{len(problems)} things wrong")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
