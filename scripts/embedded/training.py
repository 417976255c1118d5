"""The training loop: Muon for the matrices, AdamW for the rest, a cosine by wall clock, checkpoints a cut run can go on from.

Knows: Model, batches. Must not know: what the text says. The run takes the minutes it is given on whatever machine it is on; the data
order is fixed by the seed, how much of it is seen depends on the machine's speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from .model import Model, q8_0
from .score import tensors
from .tokens import Encoder, batches

MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_UP_STEPS, FINAL_RATE = 40, 0.01
QUANTIZED_SHARE = 0.25  # the last part of the run trains through Q8_0 rounding (straight-through)


def save(path: Path, model: Model, optimizers: list[torch.optim.Optimizer], seconds: float, step: int, tokens: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "seconds": seconds,
        "step": step,
        "tokens": tokens,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train(
    model: Model,
    encoder: Encoder,
    *,
    minutes: float,
    batch_tokens: int,
    seed: int,
    checkpoint: Path,
    resume: bool,
    score: Callable[[Model], str],
    score_minutes: float,
    say: Callable[[str], None],
) -> int:
    """Trains in place; returns the number of tokens seen."""
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(model.matrices(), lr=MUON_RATE, weight_decay=0.01, momentum=0.95, ns_steps=4),
        torch.optim.AdamW(model.others(), lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=0.0),
    ]
    step, tokens, before = 0, 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, tokens, before = state["step"], state["tokens"], state["seconds"]
        say(f"resumed at step {step}, {before / 60:.1f} minutes")
    rates = [MUON_RATE, ADAM_RATE]
    quantized = [*model.matrices(), model.embedding]
    start = last_said = last_scored = time.monotonic()
    average = 0.0
    for batch in batches(encoder, seed + step, batch_tokens):
        now = time.monotonic()
        done = (before + now - start) / (60 * minutes)
        if done >= 1:
            break
        factor = min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        ids, wanted, target = tensors(batch)
        masters = [p.data for p in quantized] if done > 1 - QUANTIZED_SHARE else []
        for p, master in zip(quantized, masters, strict=False):
            p.data = q8_0(master)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, wanted)
        loss = F.cross_entropy(logits.float(), target)
        loss.backward()
        for p, master in zip(quantized, masters, strict=False):
            p.data = master
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        average = loss.item() if not average else 0.97 * average + 0.03 * loss.item()
        now = time.monotonic()
        if now - last_said > 30:
            last_said, seconds = now, before + now - start
            speed = f"{tokens / 1e6:.2f} M tokens  {tokens / seconds:.0f}/s"
            say(f"{seconds / 60:5.1f} min  step {step}  {speed}  rate {factor:.3f}  loss {average:.4f}")
        if now - last_scored > 60 * score_minutes:
            last_scored = now
            save(checkpoint, model, optimizers, before + now - start, step, tokens)
            say(score(model))
    save(checkpoint, model, optimizers, 60 * minutes, step, tokens)
    return tokens
