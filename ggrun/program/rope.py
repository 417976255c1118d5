"""Rotary angles: one frequency per pair and one magnitude, from an op's parameters. NumPy only; every executor uses these numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggrun.program.params import Rope


def _correction_pair(n_rot: int, n_ctx_orig: int, rotations: float, base: float) -> float:
    """The pair index that turns `rotations` times over the original context (YaRN, arXiv 2309.00071, section 3.2)."""
    return n_rot * math.log(n_ctx_orig / (rotations * 2 * math.pi)) / (2 * math.log(base))


def frequencies(rope: Rope, factors: NDArray[np.float32] | None = None) -> tuple[NDArray[np.float64], float]:
    """Return (angle per position of each of the n_rot/2 pairs, float64; magnitude of the rotated vector).

    factors: optional float32 [n_rot/2] divisors (GGUF `rope_freqs.weight`).
    """
    pairs = np.arange(rope.n_rot // 2, dtype=np.float64)
    freq = rope.freq_base ** (-2.0 * pairs / rope.n_rot)
    if factors is not None:
        freq = freq / factors.astype(np.float64)
    scaling = rope.scaling
    if scaling.kind == "none":
        return freq, scaling.attn_factor
    interpolated = freq / scaling.factor
    if scaling.kind == "linear" or scaling.ext_factor == 0.0:
        return interpolated, scaling.attn_factor
    low = max(0.0, math.floor(_correction_pair(rope.n_rot, scaling.n_ctx_orig, scaling.beta_fast, rope.freq_base)))
    high = min(rope.n_rot - 1.0, math.ceil(_correction_pair(rope.n_rot, scaling.n_ctx_orig, scaling.beta_slow, rope.freq_base)))
    ramp = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    mix = ramp * scaling.ext_factor
    magnitude = scaling.attn_factor * (1.0 + 0.1 * math.log(scaling.factor))
    return interpolated * (1.0 - mix) + freq * mix, magnitude
