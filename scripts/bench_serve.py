#!/bin/sh
""":'
# Started as a command: run again by the Python of the checkout's own test environment.
. "$(dirname "$(readlink -f "$0")")/environment.sh"
environment test
exec "$env/bin/python" "$0" "$@"

How fast `ggrun serve` is for several clients at once: tokens a second of all, time to a first token, and time between tokens.

    scripts/bench_serve.py MODEL.gguf [--clients 1,2,4,8,16] [--rival] [-- more flags of ggrun serve]

    together   so many clients, each with prompts of its own: 64 tokens of prompt, 64 of answer
    prefix     eight clients whose prompts begin with the same 1,000 tokens, the prefix cache on and off
    arrival    a prompt of 2,000 tokens arrives while another client's answer streams: its first token beside alone, and the stream's gaps

--rival: llama-cpp-python's server after it, which answers one request at a time (the environment scripts/bench_rivals.py builds, and there
`pip install 'llama-cpp-python[server]'`).
Prints Markdown. Every figure is the median of --repeat runs; a percentile is of all runs' tokens together.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import httpx  # noqa: E402
from rivals.environments import home  # noqa: E402
from serving.client import LIMITS, Heard, complete  # noqa: E402
from serving.server import Server, ggrun  # noqa: E402

WORDS = "time year people way day man thing woman life child world school state family student group country problem hand part".split()
SHARED, LONG, SHORT, ANSWER = 1000, 2000, 64, 64  # tokens, about
STREAM_AHEAD = 30  # tokens a stream has given before the long prompt arrives


@dataclass(frozen=True)
class Together:
    """What so many clients saw."""

    n: int
    total: float  # tokens a second of all of them
    first: tuple[float, float]  # seconds: median, 99th percentile
    gap: tuple[float, float]


def prompt(n_tokens: int, seed: object) -> str:
    """Words that are about one token each, with a beginning of their own."""
    chosen = random.Random(str(seed))
    return " ".join(chosen.choice(WORDS) for _ in range(n_tokens))


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return (median(values), quantiles(values, n=100, method="inclusive")[98]) if len(values) > 1 else (values[0], values[0])


async def together(url: str, n: int, rounds: int, seed: object, prefix: str = "", **more: object) -> Together:
    """n clients, each asking `rounds` times, one question after the other."""
    async with httpx.AsyncClient(limits=LIMITS) as client:

        async def one(number: int) -> list[Heard]:
            texts = [prefix + prompt(SHORT, (seed, number, turn)) for turn in range(rounds)]
            return [await complete(client, url, text, ANSWER, temperature=0, ignore_eos=True, **more) for text in texts]

        begin = perf_counter()
        heard = [answer for answers in await asyncio.gather(*(one(i) for i in range(n))) for answer in answers]
        seconds = perf_counter() - begin
    gaps = [gap for answer in heard for gap in answer.gaps]
    return Together(n, sum(a.n_tokens for a in heard) / seconds, percentiles([a.first for a in heard]), percentiles(gaps))


async def arrival(url: str, seed: object) -> tuple[float, float, list[float]]:
    """Seconds to the first token of a long prompt alone, and beside a stream; the stream's gaps while that prompt was computed."""
    async with httpx.AsyncClient(limits=LIMITS) as client:
        alone = await complete(client, url, prompt(LONG, (seed, "alone")), 1, temperature=0)
        stream = Heard()
        streaming = asyncio.create_task(
            complete(client, url, prompt(SHORT, (seed, "stream")), 4 * LONG, stream, temperature=0, ignore_eos=True)
        )
        while len(stream.times) < STREAM_AHEAD:
            await asyncio.sleep(0.005)
        beside = await complete(client, url, prompt(LONG, (seed, "beside")), 1, temperature=0)
        end = perf_counter() - stream.began
        start = end - beside.times[-1]
        times = list(stream.times)
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    during = [(a, b) for a, b in pairwise(times) if b > start and a < end]
    return alone.first, beside.first, [b - a for a, b in during]


def row(name: str, runs: Sequence[Together]) -> str:
    total = median(run.total for run in runs)
    first, first99, gap, gap99 = (median(values) * 1e3 for values in zip(*((*run.first, *run.gap) for run in runs)))
    return f"| {name} | {total:.1f} | {first:.0f} | {first99:.0f} | {gap:.1f} | {gap99:.1f} |"


def rival_server(model: str, n_ctx: int) -> Server:
    python = home() / "native" / "bin" / "python"
    words = [str(python), "-m", "llama_cpp.server", "--model", model, "--port", "{port}", "--n_ctx", str(n_ctx), "--n_threads", "2"]
    return Server([*words, "--n_threads_batch", "2", "--flash_attn", "true", "--interrupt_requests", "false"], "/v1/models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=2, help="questions of each client")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rival", action="store_true")
    parser.add_argument("flags", nargs="*", help="more flags of ggrun serve, after --")
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    pool = max(clients) * 512 + 4 * LONG + 2048
    print(f"`{Path(args.model).name}`, {args.repeat} runs of {args.rounds} questions a client; milliseconds, median and 99th percentile\n")
    print("| clients | tokens a second of all | first token | 99% | between tokens | 99% |\n|---|---:|---:|---:|---:|---:|")
    flags = ["-np", str(max(clients)), "-c", str(pool), "--no-disk-cache", *args.flags]
    totals: dict[int, float] = {}
    with ggrun(args.model, *flags) as own:
        asyncio.run(together(own.url, 2, 1, "warm"))
        for n in clients:
            runs = [asyncio.run(together(own.url, n, args.rounds, (n, run))) for run in range(args.repeat)]
            totals[n] = median(run.total for run in runs)
            print(row(f"{n}", runs), flush=True)
        shared = prompt(SHARED, "shared") + " "
        for name, more in (("8, one prefix of 1,000 tokens", {}), ("8, the same without the cache", {"cache_prompt": False})):
            runs = [asyncio.run(together(own.url, 8, 1, ("prefix", name, run), f"{run} {shared}", **more)) for run in range(args.repeat)]
            print(row(name, runs), flush=True)
        arrivals = [asyncio.run(arrival(own.url, run)) for run in range(args.repeat)]
    if 1 in totals and 8 in totals:
        print(f"\nEight clients together get {totals[8] / totals[1]:.2f} times what one gets.")
    alone, beside = (median(values) for values in zip(*((a, b) for a, b, _ in arrivals)))
    gap, gap99 = percentiles([gap for _, _, gaps in arrivals for gap in gaps])
    print(
        f"\nA prompt of about {LONG} tokens: first token after {alone:.2f} s alone, {beside:.2f} s while another answer streams "
        f"({beside / alone:.2f} times); meanwhile that answer's tokens come every {gap * 1e3:.0f} ms, 99% within {gap99 * 1e3:.0f} ms."
    )

    if args.rival:
        print("\n| clients | tokens a second of all | first token | 99% | between tokens | 99% |\n|---|---:|---:|---:|---:|---:|")
        with rival_server(args.model, 4096) as other:
            asyncio.run(together(other.url, 1, 1, "warm"))
            for n in clients:
                runs = [asyncio.run(together(other.url, n, args.rounds, (n, run))) for run in range(args.repeat)]
                print(row(f"{n}, llama-cpp-python's server", runs), flush=True)


if __name__ == "__main__":
    main()
