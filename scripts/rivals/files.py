"""The model files that are measured: shapes of published models with random weights, made by scripts/make_model.py into the cache."""

from __future__ import annotations

from pathlib import Path

import make_model

from .environments import Say, home

FILES = {  # name: make_model's model and mix
    "1B Q4_K_M": ("llama-3.2-1b", "q4_k_m"),
    "1B Q8_0": ("llama-3.2-1b", "q8_0"),
    "1B Q6_K": ("llama-3.2-1b", "q6_k"),
    "0.6B Q8_0": ("qwen3-0.6b", "q8_0"),
    "8B Q4_K_M": ("llama-3.1-8b", "q4_k_m"),
}
SHARED_VOCABULARY = Path(__file__).resolve().parents[3] / "shared" / "vocab" / "ggml-vocab-llama-bpe.gguf"


def model_file(name: str, vocab: Path | None, say: Say) -> Path:
    """The file of that name, made when it is not there. vocab: the tokenizer of the llama shapes (None: one is made up)."""
    model, mix = FILES[name]
    path = home() / "models" / f"{model}-{mix}.gguf"
    if not path.exists():
        say(f"making {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        make_model.make(model, mix, str(part), str(vocab) if vocab and model.startswith("llama") else None)
        part.rename(path)
    return path
