"""A client that measures: when an answer's first token came, and the time between tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import httpx

LIMITS = httpx.Limits(max_connections=None)


@dataclass
class Heard:
    """One streamed answer. Seconds; times: of each piece, from the request's start."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    n_tokens: int = 0
    n_cached: int = 0
    n_prompt: int = 0
    finish_reason: str | None = None
    began: float = 0.0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] if self.times else float("nan")

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.times)]


async def complete(client: httpx.AsyncClient, url: str, prompt: str, n: int, heard: Heard | None = None, **more: Any) -> Heard:
    """Stream /v1/completions; RuntimeError for anything but an answer. heard: filled as it comes."""
    heard = heard or Heard()
    body = {"model": "default", "prompt": prompt, "max_tokens": n, "stream": True, "stream_options": {"include_usage": True}, **more}
    heard.began = begin = perf_counter()
    async with client.stream("POST", url + "/v1/completions", json=body, timeout=600) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            for choice in event.get("choices", ()):
                if choice.get("finish_reason") is None or choice.get("text"):
                    heard.times.append(perf_counter() - begin)
                    heard.text += choice.get("text") or ""
                heard.finish_reason = choice.get("finish_reason") or heard.finish_reason
            if usage := event.get("usage"):
                heard.n_tokens, heard.n_prompt = usage["completion_tokens"], usage["prompt_tokens"]
                heard.n_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    heard.n_tokens = heard.n_tokens or len(heard.times)
    return heard
