"""Trains the embedded default model from the docstrings of the interpreter at hand and writes its GGUF.

    python scripts/train_embedded.py --out ggrun/data/pydoc.gguf --minutes 90

Needs the `train` extra (torch, tokenizers, gguf, numpy). Downloads nothing.
The steps live in scripts/embedded/; docs/embedded-model.md tells why.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads cost half of a shared CPU

import torch
from embedded import score
from embedded.corpus import build_items
from embedded.dialogue import Dialogue, Turn, refusal
from embedded.export import export, provenance
from embedded.model import Model, Shape
from embedded.tokens import Encoder, train_tokenizer
from embedded.training import train
from tokenizers import Tokenizer

HELD_OUT = Path(__file__).parent.parent / "tests" / "data" / "embedded"
LARGEST = 8_000_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the GGUF to write")
    parser.add_argument("--minutes", type=float, default=90.0, help="how long to train; the learning rate follows the clock")
    parser.add_argument("--checkpoint", type=Path, help="where to keep the state (default: train/, named after OUT)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=5120)
    parser.add_argument("--score-minutes", type=float, default=8.0, help="minutes between scores and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options, start = arguments(), time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    def say(line: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)

    items = build_items()
    made_up_names = json.loads((HELD_OUT / "made_up.json").read_text(encoding="utf-8"))
    dialogue = Dialogue(items, frozenset(row["name"] for row in made_up_names))
    checkpoint = options.checkpoint or Path("train") / options.out.with_suffix(".pt").name
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = checkpoint.with_suffix(".tokenizer.json")  # a resumed run may have other texts, but must keep its tokens
    if not (options.resume and vocabulary.exists()):
        train_tokenizer(dialogue, options.seed).save(str(vocabulary))
    encoder = Encoder(Tokenizer.from_file(str(vocabulary)), dialogue)
    model = Model(Shape())
    parameters = sum(p.numel() for p in model.parameters())
    say(f"{len(items)} items, {len(dialogue.words)} words, {parameters / 1e6:.3f} M parameters, data in {time.monotonic() - start:.0f} s")
    held_out = {
        "grammar": score.questions(encoder, 901, 64),
        "made up": score.made_up(encoder, 902, 64),
        "made up, held out": score.rows(encoder, [Turn(row["question"], refusal(row["name"])) for row in made_up_names]),
        "after 1,900 tokens": score.after_history(encoder, 903, 8, 1900),
        "after 3,500 tokens": score.after_history(encoder, 904, 4, 3500),
    }

    def scores(current: Model) -> str:
        return "  SCORE " + ", ".join(f"{name} {100 * score.exact(current, what):.0f}%" for name, what in held_out.items())

    tokens = train(
        model, encoder, minutes=options.minutes, batch_tokens=options.batch_tokens, seed=options.seed,
        checkpoint=checkpoint, resume=options.resume, score=scores,
        score_minutes=options.score_minutes, say=say,
    )  # fmt: skip
    export(options.out, model, encoder.tokenizer, provenance(tokens, len(items)))
    size = options.out.stat().st_size
    say(scores(model))
    say(f"{options.out}: {size:,} bytes after {tokens / 1e6:.2f} M tokens")
    if size > LARGEST:
        raise SystemExit(f"{options.out} has {size:,} bytes; at most {LARGEST:,} may be shipped")


if __name__ == "__main__":
    main()
