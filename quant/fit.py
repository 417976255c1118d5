"""Choosing the scales of a block: weighted least squares over a handful of candidate roundings.

Given a rounding of a row to integers, the scale (and minimum) with the least weighted squared error has a closed form. So each
search here tries a few slightly different step sizes, rounds, solves, and keeps the best. Everything is vectorized over rows;
no format is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from quant.codec import Floats, inverse


def largest(x: Floats) -> Floats:
    """The element of greatest magnitude of each row, with its sign: float32[n, m] -> float32[n, 1]."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


def half_scale_from_largest(x: Floats, end: float) -> NDArray[np.float16]:
    """float16[n] that maps each row's element of greatest magnitude to the integer `end`; saturates at 65504."""
    return saturated_half(largest(x) / np.float32(end))


def saturated_half(x: Floats) -> NDArray[np.float16]:
    """float32[n, 1] -> float16[n], never infinite."""
    return np.clip(x[:, 0], -65504, 65504).astype(np.float16)


def best_scale(x: Floats, rounding: Callable[[Floats], Floats], ends: Sequence[float]) -> Floats:
    """The scale d per row that minimizes sum x^2 (x - d * rounding(x / d'))^2 over d and the candidates d'.

    x float32[n, m]; `rounding` returns the levels nearest to its argument; each of `ends` is a level (or a number near one)
    that a candidate maps the row's largest element to. Returns float32[n, 1]; rows of zeros get scale 0. Weighting by x^2
    protects the large weights, which matter most to a dot product.
    """
    peak = largest(x)
    weight = np.square(x * inverse(peak))
    best_gain = np.zeros_like(peak)
    best = np.zeros_like(peak)
    for end in ends:
        level = rounding(x * (np.float32(end) * inverse(peak)))
        cross = (weight * x * level).sum(axis=1, keepdims=True)
        square = (weight * level * level).sum(axis=1, keepdims=True)
        scale = cross * inverse(square)
        gain = scale * cross  # how much of sum w x^2 this candidate explains
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best = np.where(better, scale, best)
    return best


def best_scale_and_minimum(x: Floats, top: int, stretches: Sequence[float]) -> tuple[Floats, Floats]:
    """Scale d >= 0 and offset m >= 0 per row that minimize sum w (x - (d * q - m))^2 with q integers 0..top.

    x float32[n, k]. Each of `stretches` is a candidate number of steps between the row's extremes. The weight of an
    element is 1 plus its magnitude in units of the row's root mean square. Returns float32[n, 1] twice.
    """
    low = np.minimum(x.min(axis=1, keepdims=True), np.float32(0))
    span = np.maximum(x.max(axis=1, keepdims=True), np.float32(0)) - low
    weight = np.abs(x * inverse(np.sqrt(np.mean(np.square(x), axis=1, keepdims=True)))) + np.float32(1)
    w, wx = _sum(weight), _sum(weight * x)
    best_d, best_m = span / np.float32(top), -low
    best_error = _error(x, weight, best_d, best_m, top)
    for stretch in stretches:
        q = np.clip(np.rint((x - low) * (np.float32(stretch) * inverse(span))), 0, top)
        wq, wqq, wxq = _sum(weight * q), _sum(weight * q * q), _sum(weight * x * q)
        determinant = w * wqq - wq * wq
        d = (w * wxq - wx * wq) * inverse(determinant)
        m = (wq * wxq - wqq * wx) * inverse(determinant)
        free = m >= 0  # a positive minimum cannot be stored: fit the scale alone instead
        d = np.where(free, d, wxq * inverse(wqq))
        m = np.where(free, m, np.float32(0))
        error = _error(x, weight, d, m, top)
        better = (error < best_error) & (d > 0)
        best_error = np.where(better, error, best_error)
        best_d, best_m = np.where(better, d, best_d), np.where(better, m, best_m)
    return best_d, best_m


def _sum(x: Floats) -> Floats:
    total: NDArray[np.float32] = x.sum(axis=1, keepdims=True)
    return total


def _error(x: Floats, weight: Floats, d: Floats, m: Floats, top: int) -> Floats:
    q = np.clip(np.rint((x + m) * inverse(d)), 0, top)
    return _sum(weight * np.square(d * q - m - x))
