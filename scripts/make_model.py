#!/bin/sh
""":'
# Started as a command: run again by the Python of the checkout's own environment.
. "$(dirname "$(readlink -f "$0")")/environment.sh"
environment ""
exec "$env/bin/python" "$0" "$@"

Makes a model file of a real model's shape with random weights: for measuring speed and memory, and for tests. It talks nonsense.

    scripts/make_model.py llama-3.2-1b q4_k_m OUT.gguf [--vocab FILE.gguf] [--seed 0] [--layers N]

Weights are drawn directly as quantized blocks and streamed to the file, so that a 14B model takes no more memory than a 1B one.
Widths, formats of every tensor and metadata are those of the published model; a vocabulary is made up unless one is given.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from model_vocabulary import LLAMA_3, QWEN_3, Specials, copied_vocabulary, made_up_vocabulary  # noqa: E402

from ggrun.errors import GgrunError  # noqa: E402
from ggrun.gguf import GgufWriter  # noqa: E402
from quant.format import Format, format_by_name  # noqa: E402
from quant.reference import CODECS, dequantize  # noqa: E402

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Shape:
    """A published model's dimensions, in GGUF's terms."""

    architecture: str
    label: str
    n_layers: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ctx: int
    rope_base: float
    eps: float
    tied: bool
    specials: Specials
    qk_norm: bool = False
    rope_factor: float = 0.0  # Llama 3.1's stretching of slow frequencies; 0: none


SHAPES = {
    "llama-3.2-1b": Shape("llama", "1B", 16, 2048, 32, 8, 64, 8192, 131072, 5e5, 1e-5, True, LLAMA_3, rope_factor=32),
    "llama-3.1-8b": Shape("llama", "8B", 32, 4096, 32, 8, 128, 14336, 131072, 5e5, 1e-5, False, LLAMA_3, rope_factor=8),
    "qwen3-0.6b": Shape("qwen3", "0.6B", 28, 1024, 16, 8, 128, 3072, 40960, 1e6, 1e-6, True, QWEN_3, qk_norm=True),
    "qwen3-14b": Shape("qwen3", "14B", 40, 5120, 40, 8, 128, 17408, 40960, 1e6, 1e-6, False, QWEN_3, qk_norm=True),
}
FILE_TYPES = {"q8_0": 7, "q4_k_m": 15, "q6_k": 18}  # general.file_type


def more_bits(layer: int, n_layers: int) -> bool:
    """Whether llama.cpp's _M mixes give this layer's sensitive tensors a better format: the ends, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def matrix_format(mix: str, name: str, layer: int, n_layers: int, tied: bool) -> Format:
    """The format llama.cpp's quantizer gives a matrix; `name` without its `blk.N.` and `.weight`."""
    if mix != "q4_k_m":
        return format_by_name(mix)
    is_head = name == "output" or (tied and name == "token_embd")
    return format_by_name("Q6_K" if is_head or (name in ("attn_v", "ffn_down") and more_bits(layer, n_layers)) else "Q4_K")


def tensors(shape: Shape, n_layers: int, n_vocab: int) -> Iterator[tuple[str, int, tuple[int, ...], float]]:
    """(name, layer, dims, standard deviation) of every tensor; a deviation of 0 means a norm's weights, around 1.

    Activations keep a size near 1 through every matrix; logits get a deviation near 4, so that a few tokens stand out.
    """
    n_embd, q_width, kv_width = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    head = 4 * n_embd**-0.5
    matrices = {
        "attn_q": (n_embd, q_width),
        "attn_k": (n_embd, kv_width),
        "attn_v": (n_embd, kv_width),
        "attn_output": (q_width, n_embd),
        "ffn_gate": (n_embd, shape.n_ff),
        "ffn_up": (n_embd, shape.n_ff),
        "ffn_down": (shape.n_ff, n_embd),
    }
    yield "token_embd", 0, (n_embd, n_vocab), head if shape.tied else 1.0
    for layer in range(n_layers):
        yield f"blk.{layer}.attn_norm", layer, (n_embd,), 0.0
        yield f"blk.{layer}.ffn_norm", layer, (n_embd,), 0.0
        if shape.qk_norm:
            yield f"blk.{layer}.attn_q_norm", layer, (shape.head_dim,), 0.0
            yield f"blk.{layer}.attn_k_norm", layer, (shape.head_dim,), 0.0
        for name, dims in matrices.items():
            yield f"blk.{layer}.{name}", layer, dims, dims[0] ** -0.5
    yield "output_norm", 0, (n_embd,), 0.0
    if not shape.tied:
        yield "output", 0, (n_embd, n_vocab), head


def rope_factors(shape: Shape) -> NDArray[np.float32]:
    """Llama 3.1's divisors of the rotary frequencies, float32[head_dim / 2]: 1 for fast ones, `rope_factor` for slow ones."""
    original, low, high = 8192, 1.0, 4.0
    turns = original * shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / shape.rope_factor + smooth)).astype(np.float32)


def _shape_q4_k(blocks: NDArray[np.void]) -> None:
    blocks["scales"][:, :8] |= 0xA0  # the top bit of all sixteen six-bit numbers: scales and minima in 32..63
    blocks["dmin"] = blocks["d"] * np.float16(7.5)  # the middle of the quants, so that weights are centred


def _shape_q6_k(blocks: NDArray[np.void]) -> None:
    scales = blocks["scales"]
    blocks["scales"] = np.where(scales < 0, -64 - (scales & 63), 64 + (scales & 63))


def _shape_q8_0(blocks: NDArray[np.void]) -> None:
    blocks["qs"] = np.maximum(blocks["qs"], -127)  # no quantizer writes -128


SHAPERS: Mapping[str, Callable[[NDArray[np.void]], None]] = {"Q4_K": _shape_q4_k, "Q6_K": _shape_q6_k, "Q8_0": _shape_q8_0}


def random_blocks(fmt: Format, rng: np.random.Generator, n_blocks: int, d: float) -> NDArray[np.void]:
    """Blocks with random quants and sub-scales, and scales between half and one and a half of `d`."""
    n_bytes = n_blocks * fmt.block_bytes
    raw: NDArray[np.uint8] = rng.bit_generator.random_raw(-(-n_bytes // 8)).view(np.uint8)
    blocks = raw[:n_bytes].view(CODECS[fmt.name].layout)
    blocks["d"] = (rng.random(n_blocks, np.float32) + np.float32(0.5)) * np.float32(d)
    SHAPERS[fmt.name](blocks)
    return blocks


@cache
def deviation_at_1(fmt: Format) -> float:
    """Standard deviation of the weights that `random_blocks` makes with d = 1."""
    sample = random_blocks(fmt, np.random.Generator(np.random.SFC64(0)), 2048, 1.0)
    return float(dequantize(fmt, sample.view(np.uint8)).std())


def chunks(name: str, dims: tuple[int, ...], fmt: Format, deviation: float, seed: int) -> Iterator[NDArray[Any]]:
    """The bytes of a tensor, a few megabytes at a time. They depend on its name and the seed, not on the tensors before it."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    if fmt.name == "F32":
        yield rng.normal(1.0, 0.1, dims).astype(np.float32)
        return
    d = deviation / deviation_at_1(fmt)
    n_blocks, step = math.prod(dims) // fmt.block_elements, CHUNK_BYTES // fmt.block_bytes
    for start in range(0, n_blocks, step):
        yield random_blocks(fmt, rng, min(step, n_blocks - start), d)


def hyperparameters(shape: Shape, n_layers: int, n_vocab: int) -> dict[str, int | float]:
    """The `ARCH.*` metadata."""
    fields = {
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "block_count": n_layers,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.freq_base": shape.rope_base,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": n_vocab,
    }
    return {f"{shape.architecture}.{key}": value for key, value in fields.items()}


def make(model: str, mix: str, path: str, vocab: str | None = None, seed: int = 0, layers: int | None = None) -> tuple[int, int]:
    """Write the file; (parameters, bytes of tensors). GgrunError when there is no room for it or the vocabulary cannot be read."""
    shape = SHAPES[model]
    n_layers = shape.n_layers if layers is None else layers
    vocabulary = copied_vocabulary(vocab) if vocab else made_up_vocabulary(shape.specials)
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])
    listed = list(tensors(shape, n_layers, n_vocab))
    n_parameters = sum(math.prod(dims) for _, _, dims, _ in listed)

    writer = GgufWriter(path)
    writer.add("general.architecture", shape.architecture)
    writer.add("general.type", "model")
    writer.add("general.name", f"{model} random")
    writer.add("general.description", f"random weights, seed {seed}: for measurements, not for talking")
    writer.add("general.size_label", shape.label if layers is None else f"{n_parameters / 1e6:.0f}M")
    writer.add("general.file_type", FILE_TYPES[mix])
    writer.add("general.quantization_version", 2)
    for key, value in {**hyperparameters(shape, n_layers, n_vocab), **vocabulary}.items():
        writer.add(key, value)

    n_bytes = 0
    f32 = format_by_name("F32")
    if shape.rope_factor:
        writer.add_tensor("rope_freqs.weight", (shape.head_dim // 2,), f32, rope_factors(shape))
    for name, layer, dims, deviation in listed:
        fmt = matrix_format(mix, name.rpartition(".")[2], layer, n_layers, shape.tied) if deviation else f32
        writer.add_tensor(f"{name}.weight", dims, fmt, chunks(name, dims, fmt, deviation, seed))
        n_bytes += fmt.row_bytes(math.prod(dims))
    free = shutil.disk_usage(Path(path).resolve().parent).free
    if n_bytes > free:
        raise GgrunError(f"{path} needs {n_bytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left")
    writer.write()
    return n_parameters, n_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a GGUF file of a real model's shape with random weights.")
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("mix", choices=FILE_TYPES, type=str.lower)
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--vocab", metavar="FILE.gguf", help="take the tokenizer, and with it the vocabulary's size, from this file")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other weights (default 0)")
    parser.add_argument("--layers", type=int, metavar="N", help="that many layers instead of the model's own")
    args = parser.parse_args()
    if args.seed < 0 or (args.layers is not None and args.layers < 1):
        parser.error("--seed must be 0 or more, --layers at least 1")
    try:
        n_parameters, n_bytes = make(args.model, args.mix, args.out, args.vocab, args.seed, args.layers)
    except (GgrunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {n_parameters / 1e9:.2f} B parameters, {n_bytes / 2**20:.2f} MiB of tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
