"""The table of op kinds: how many buffers and weights each takes and gives, and its parameter type.

verify checks programs against it; the reference executor and every device have one entry for each of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggrun.program import params as p


@dataclass(frozen=True, slots=True)
class Kind:
    """Signature of an op kind: names of inputs, outputs and weights (a trailing "?" marks an optional one)."""

    params: type
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "embed": Kind(p.Embed, ("ids",), ("x",), ("table",)),
    "rms_norm": Kind(p.RmsNorm, ("x",), ("y",), ("weight",)),
    "linear": Kind(p.Linear, ("x",), ("y",), ("weight", "bias?")),
    "rope": Kind(p.Rope, ("x", "positions"), ("y",), ("factors?",)),
    "attention": Kind(p.Attention, ("q", "k", "v", "positions"), ("y",)),
    "add": Kind(p.Add, ("a", "b"), ("y",)),
    "glu": Kind(p.Glu, ("gate", "up"), ("y",)),
    "route": Kind(p.Route, ("logits",), ("expert_ids", "expert_weights")),
    "expert_linear": Kind(p.ExpertLinear, ("x", "expert_ids"), ("y",), ("weight",)),
    "expert_sum": Kind(p.ExpertSum, ("x", "expert_weights"), ("y",)),
    "take_rows": Kind(p.TakeRows, ("x", "out_rows"), ("y",)),
}
