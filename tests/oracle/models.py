"""Rows of the oracle (a GGUF file, its expected logits, its tolerances) and the comparison; see the manifests for where they come from.

Three small files live in tests/data; the others are shared data a stranger's checkout does not have.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import REPO, SHARED

LOCAL = REPO / "tests" / "data" / "oracle"


def rows(folder: Path) -> list[tuple[str, dict[str, Any], Path]]:
    """(file name, manifest row, folder) of every model whose manifest lies in the folder."""
    manifest = folder / "MANIFEST.json"
    if not manifest.exists():
        return []
    return [(row["file"], row, folder) for row in json.loads(manifest.read_text())["files"]]


@cache
def all_rows() -> dict[str, tuple[dict[str, Any], Path]]:
    """Every model at hand by file name; the copies in tests/data count when the shared data are missing."""
    return {name: (row, folder) for name, row, folder in rows(LOCAL) + rows(SHARED / "oracle")}


def expected(row: dict[str, Any], folder: Path) -> dict[str, NDArray[Any]]:
    return dict(np.load(folder / row["expected"]))


def _per_position(logits: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared error and the reference's spread over the vocabulary, of each position."""
    logits, reference = logits.astype(np.float64), reference.astype(np.float64)
    return ((logits - reference) ** 2).sum(-1), ((reference - reference.mean(-1, keepdims=True)) ** 2).sum(-1)


def assert_logits(row: dict[str, Any], want: dict[str, NDArray[Any]], logits: NDArray[np.float32], mode: str) -> None:
    """mode "exact": float32 all the way. "quant": quantized activations and f16 KV; experts are judged by their median position."""
    reference, tolerance = want["logits_f32ref"], row["tolerance"]
    assert logits.shape == reference.shape
    assert np.isfinite(logits).all()
    error, spread = _per_position(logits, reference)
    if mode == "exact":
        assert error.sum() / spread.sum() <= tolerance["nmse_exact"]
    elif row["moe"]:
        assert np.median(error / spread) <= tolerance["median_pos_nmse"]
        assert (error / spread > tolerance["pos_outlier_nmse"]).mean() <= tolerance["max_outlier_fraction"]
    else:
        assert error.sum() / spread.sum() <= tolerance["nmse"]


def assert_greedy(row: dict[str, Any], want: dict[str, NDArray[Any]], steps: NDArray[np.float32], mode: str) -> None:
    """steps[k] predicts greedy[k]; steps whose two best tokens nearly tie are not judged."""
    suffix, key = ("_f32ref", "greedy_margin_exact") if mode == "exact" else ("", "greedy_margin")
    clear = want["greedy_margin" + suffix] >= row["tolerance"][key]
    assert (steps.argmax(-1)[clear] == want["greedy" + suffix][clear]).all()
