"""Typed parameters of every op kind. A device packs them in its lowering; nothing here knows addresses, threads or devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary angles are stretched beyond the trained context (GGUF `rope.scaling.*`; YaRN: arXiv 2309.00071)."""

    kind: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    n_ctx_orig: int = 0
    ext_factor: float = 1.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = weight[ids[t]] * scale."""

    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root mean square norm over each of `groups` equal parts of a row, times the weight (one part long)."""

    eps: float
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Linear:
    """out[t, r] = dot(weight[r], x[t]) (+ bias[r])."""

    bias: bool = False


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of `n_heads` heads in place of the first `n_rot` elements of each.

    style "norm" rotates neighbours (2i, 2i+1), "neox" rotates (i, i + n_rot/2). `factors` says that a weight holds one divisor per pair.
    """

    n_heads: int
    head_dim: int
    n_rot: int
    style: Literal["norm", "neox"]
    freq_base: float
    scaling: RopeScaling = field(default_factory=RopeScaling)
    factors: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention over the sequence's KV state, which first receives this batch's k and v.

    window > 0: a token at position p sees positions p-window+1..p. softcap > 0: scores become softcap * tanh(scores / softcap).
    """

    state: str
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""


@dataclass(frozen=True, slots=True)
class Glu:
    """out = act(gate) * up."""

    act: Literal["silu"] = "silu"


@dataclass(frozen=True, slots=True)
class Route:
    """The `n_used` highest of softmax(logits), in falling order (ties: lower id first); weights renormalized to sum to one if asked."""

    n_expert: int
    n_used: int
    normalize: bool = True
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ExpertLinear:
    """For slot s of token t: out[t, s] = weight[ids[t, s]] @ x, where x is the token's row (shared) or the slot's own part of it."""

    n_expert: int
    n_used: int
    shared_input: bool


@dataclass(frozen=True, slots=True)
class ExpertSum:
    """out[t] = sum over slots s, in order, of weights[t, s] * x[t, s]."""

    n_used: int


@dataclass(frozen=True, slots=True)
class TakeRows:
    """out[r] = x[out_rows[r]]: the rows whose logits are wanted."""


Params = Embed | RmsNorm | Linear | Rope | Attention | Add | Glu | Route | ExpertLinear | ExpertSum | TakeRows
