"""Llama (arXiv 2407.21783), Mistral and Mixtral: pre-norm, grouped queries, rotary neighbours, SwiGLU or experts."""

from __future__ import annotations

from ggrun.models import dense
from ggrun.models.spec import ModelSpec
from ggrun.program.builder import Builder
from ggrun.program.params import Rope


def llama(spec: ModelSpec, b: Builder) -> None:
    """`rope_freqs.weight` (Llama 3.1 and later) divides the rotary frequencies when the file has it."""
    rope = Rope(0, 0, spec.n_rot, "norm", spec.rope_freq_base, spec.rope_scaling)
    factors = "rope_freqs.weight" if b.has("rope_freqs.weight") else None
    x = dense.embed(spec, b)
    for i, layer in enumerate(spec.layers):
        with b.unit(f"layer.{i}.attn"):
            q, k, v = dense.qkv(b, b.rms_norm(x, f"blk.{i}.attn_norm.weight", spec.norm_eps), i, layer)
            x = b.add(x, dense.attend(spec, b, q, k, v, i, rope, factors))
        with b.unit(f"layer.{i}.experts" if layer.n_expert else f"layer.{i}.ffn"):
            y = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", spec.norm_eps)
            x = b.add(x, dense.experts(spec, b, y, i) if layer.n_expert else dense.ffn(spec, b, y, i))
    dense.head(spec, b, x)
