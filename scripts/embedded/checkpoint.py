"""A shipped GGUF back as a torch model, so that its quantized weights can be judged without ggrun's engine.

Knows: the tensors export.py writes. Must not know: anything of training.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .model import Model, Shape
from .tokens import SPECIAL


def load(path: Path) -> tuple[Model, Tokenizer]:
    """(model with dequantized weights, tokenizer rebuilt from the metadata alone) of a file export.py wrote."""
    reader = gguf.GGUFReader(path)

    def field(key: str) -> object:
        return reader.fields[key].contents()

    def number(key: str) -> int:
        return int(str(field(f"llama.{key}")))

    tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    shape = Shape(
        vocabulary=number("vocab_size"), width=number("embedding_length"),
        layers=number("block_count"), feed_forward=number("feed_forward_length"),
        heads=number("attention.head_count"), kv_heads=number("attention.head_count_kv"), head=number("attention.key_length"),
        theta=float(str(field("llama.rope.freq_base"))), context=number("context_length"),
    )  # fmt: skip
    state = {"embedding": tensors["token_embd.weight"], "norm": tensors["output_norm.weight"]}
    for layer in range(shape.layers):
        target, source = f"layers.{layer}.", f"blk.{layer}."
        state[target + "attn_norm"], state[target + "ffn_norm"] = tensors[source + "attn_norm.weight"], tensors[source + "ffn_norm.weight"]
        state[target + "qkv.weight"] = torch.cat([tensors[f"{source}attn_{part}.weight"] for part in "qkv"])
        state[target + "gate_up.weight"] = torch.cat([tensors[f"{source}ffn_{part}.weight"] for part in ("gate", "up")])
        state[target + "output.weight"], state[target + "down.weight"] = (
            tensors[source + "attn_output.weight"],
            tensors[source + "ffn_down.weight"],
        )
    model = Model(shape)
    model.load_state_dict(state)
    pieces, merges = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges")
    assert isinstance(pieces, list)
    assert isinstance(merges, list)
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[tuple(merge.split(" ")) for merge in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    return model.eval(), tokenizer
