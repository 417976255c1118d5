"""Writing the GGUF: architecture llama, every matrix in Q8_0, the tokenizer, the chat template, provenance.

Knows: GGUF's key and tensor names. Must not know: how the weights came to be.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from .model import EPSILON, Model
from .tokens import END, END_OF_TEXT, SPECIAL, TEMPLATE

NAME = "ggrun-pydoc"
DESCRIPTION = "A tiny chat model that answers short questions about Python's standard library, trained on its docstrings."
LICENSE = "MIT AND PSF-2.0"
AUTHOR = "the ggrun contributors; docstrings by the Python Software Foundation and contributors to Python"


def provenance(tokens: int, items: int) -> str:
    return (
        f"Trained from random weights by scripts/train_embedded.py on {tokens / 1e6:.1f} M tokens of generated questions about"
        f" {items} names, answered with the first sentence of the docstring in Python {platform.python_version()}"
        " (PSF-2.0) or a hand-made sentence (MIT). No other data, no other model."
    )


def export(path: Path, model: Model, tokenizer: Tokenizer, origin: str) -> None:
    """Writes the model; matrices as Q8_0, norms as F32."""
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license(LICENSE)
    writer.add_author(AUTHOR)
    writer.add_languages(["en"])
    writer.add_string("general.provenance", origin)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(shape.vocabulary)
    _add_tokenizer(writer, tokenizer)
    weights = {name: value.float().numpy() for name, value in model.state_dict().items()}
    _add_matrix(writer, "token_embd.weight", weights["embedding"])
    writer.add_tensor("output_norm.weight", weights["norm"])
    queries, keys, half = shape.heads * shape.head, shape.kv_heads * shape.head, shape.feed_forward
    for layer in range(shape.layers):
        source, target = f"layers.{layer}.", f"blk.{layer}."
        qkv, gate_up = weights[source + "qkv.weight"], weights[source + "gate_up.weight"]
        writer.add_tensor(target + "attn_norm.weight", weights[source + "attn_norm"])
        _add_matrix(writer, target + "attn_q.weight", qkv[:queries])
        _add_matrix(writer, target + "attn_k.weight", qkv[queries : queries + keys])
        _add_matrix(writer, target + "attn_v.weight", qkv[queries + keys :])
        _add_matrix(writer, target + "attn_output.weight", weights[source + "output.weight"])
        writer.add_tensor(target + "ffn_norm.weight", weights[source + "ffn_norm"])
        _add_matrix(writer, target + "ffn_gate.weight", gate_up[:half])
        _add_matrix(writer, target + "ffn_up.weight", gate_up[half:])
        _add_matrix(writer, target + "ffn_down.weight", weights[source + "down.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_matrix(writer: gguf.GGUFWriter, name: str, matrix: np.ndarray) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(matrix), kind), raw_dtype=kind)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    bpe = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([gguf.TokenType.CONTROL if piece in SPECIAL else gguf.TokenType.NORMAL for piece in pieces])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(END_OF_TEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
