#!/usr/bin/env python3
"""What constraints cost: tokens a second with and without a JSON schema, in turns, and the time a mask takes. Medians.

    python scripts/bench_constraint.py MODEL.gguf [--tokens 64] [--pairs 7] [--threads N]

MODEL: a file of scripts/make_model.py, with a real vocabulary (--vocab). Its weights are random, so its strings and numbers are, too.
"""

import argparse
import random
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from ggrun import Engine, Sampling
from ggrun.engine.candidates import Candidates
from ggrun.engine.constraint import constraint_for

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "role": {"enum": ["admin", "user", "guest"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
JSON_GBNF = r"""
root   ::= "[" ws object ("," ws object)* "]"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
value  ::= object | array | string | number | ("true" | "false" | "null") ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
FORMS = {
    "JSON schema": ("json_schema", {"type": "array", "items": PERSON, "minItems": 1000}),
    "GBNF, JSON": ("grammar", JSON_GBNF),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with Engine.open(arguments.model, n_ctx=2048, n_threads=arguments.threads) as engine:
        began = perf_counter()
        constraint_for("json_object", None, engine.tokenizer)
        print(f"{engine.tokenizer.n_vocab} tokens; the vocabulary made ready once: {perf_counter() - began:.2f} s")
        for name, form in FORMS.items():
            masks(engine, name, form)
        for label, sampling in (("default sampling", {}), ("greedy", {"temperature": 0.0})):
            speeds(engine, arguments.tokens, arguments.pairs, label, sampling)


def masks(engine: Engine, name: str, form: tuple[str, object]) -> None:
    """Times of masks, one after the other, along random answers; and of what the sampler does with them."""
    began = perf_counter()
    constraint_for(*form, engine.tokenizer)
    ready = perf_counter() - began
    taken, applied = [], []
    logits = np.random.default_rng(0).normal(size=engine.spec.n_vocab).astype(np.float32)
    for seed in range(8):
        chosen = random.Random(seed)
        constraint = constraint_for(*form, engine.tokenizer)
        constraint.mask()
        for _ in range(200):
            began = perf_counter()
            candidates = Candidates(logits)
            candidates.allow(constraint.mask())
            applied.append(perf_counter() - began)
            if constraint.done:
                break
            id_ = candidates.id_at(chosen.randrange(len(candidates)))
            if id_ in engine.tokenizer.end_of_generation:
                break
            began = perf_counter()
            constraint.accept(id_)
            constraint.mask()
            taken.append(perf_counter() - began)
    row = " ".join(f"p{p} {1e6 * np.percentile(taken, p):.0f}" for p in (50, 95, 99))
    print(f"{name}: ready in {1e3 * ready:.1f} ms; a mask takes {row} us ({len(taken)} masks), its use {1e6 * median(applied):.0f} us")


def speeds(engine: Engine, n_tokens: int, n_pairs: int, label: str, sampling: dict[str, float]) -> None:
    """Tokens a second, without and with each constraint, in turns."""
    ids = engine.tokenizer.encode("Write a long list of people as JSON.")
    rows: dict[str, list[float]] = {name: [] for name in ("none", *FORMS)}
    for turn in range(n_pairs + 1):
        for name in rows:
            constraint = constraint_for(*FORMS[name], engine.tokenizer) if name in FORMS else None
            how = Sampling(seed=turn, **sampling)  # type: ignore[arg-type]  # the names are Sampling's
            generation = engine.submit(ids, how, n_predict=n_tokens, constraint=constraint).wait()
            rows[name].append(generation.timings.predicted_per_second if len(generation.ids) == n_tokens else np.nan)  # may end early
    for name, row in rows.items():
        costs = [100 * (1 - speed / plain) for speed, plain in zip(row[1:], rows["none"][1:], strict=True)]  # the first turn warms up
        low, middle, high = np.nanpercentile(costs, (25, 50, 75))
        print(f"{label}, {name}: {np.nanmedian(row[1:]):.2f} t/s; costs {middle:+.1f}% (quartiles {low:+.1f}, {high:+.1f})")


if __name__ == "__main__":
    main()
