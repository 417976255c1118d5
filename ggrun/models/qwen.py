"""Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388): rotary halves; Qwen2 biases q, k and v, Qwen3 norms each head of q and k."""

from __future__ import annotations

from ggrun.models import dense
from ggrun.models.spec import ModelSpec
from ggrun.program.builder import Builder
from ggrun.program.params import Rope


def qwen2(spec: ModelSpec, b: Builder) -> None:
    _qwen(spec, b, head_norms=False)


def qwen3(spec: ModelSpec, b: Builder) -> None:
    _qwen(spec, b, head_norms=True)


def _qwen(spec: ModelSpec, b: Builder, head_norms: bool) -> None:
    rope = Rope(0, 0, spec.n_rot, "neox", spec.rope_freq_base, spec.rope_scaling)
    x = dense.embed(spec, b)
    for i, layer in enumerate(spec.layers):
        with b.unit(f"layer.{i}.attn"):
            q, k, v = dense.qkv(b, b.rms_norm(x, f"blk.{i}.attn_norm.weight", spec.norm_eps), i, layer)
            if head_norms:
                q = b.rms_norm(q, f"blk.{i}.attn_q_norm.weight", spec.norm_eps, layer.n_head)
                k = b.rms_norm(k, f"blk.{i}.attn_k_norm.weight", spec.norm_eps, layer.n_head_kv)
            x = b.add(x, dense.attend(spec, b, q, k, v, i, rope))
        with b.unit(f"layer.{i}.ffn"):
            x = b.add(x, dense.ffn(spec, b, b.rms_norm(x, f"blk.{i}.ffn_norm.weight", spec.norm_eps), i))
    dense.head(spec, b, x)
