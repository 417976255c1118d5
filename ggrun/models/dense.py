"""The decoder-only transformer most families are: parts shared by their functions, unfused and in order."""

from __future__ import annotations

from ggrun.models.spec import LayerSpec, ModelSpec
from ggrun.program.builder import Builder
from ggrun.program.params import Attention, Rope, Route
from ggrun.program.program import Buffer


def embed(spec: ModelSpec, b: Builder) -> Buffer:
    with b.unit("embed"):
        return b.embed("token_embd.weight", spec.n_embd)


def qkv(b: Builder, x: Buffer, i: int, layer: LayerSpec) -> tuple[Buffer, Buffer, Buffer]:
    """Three projections of the normed input, with biases where the file has them."""
    q = b.linear(x, f"blk.{i}.attn_q", layer.n_head * layer.head_dim_k)
    k = b.linear(x, f"blk.{i}.attn_k", layer.n_head_kv * layer.head_dim_k)
    v = b.linear(x, f"blk.{i}.attn_v", layer.n_head_kv * layer.head_dim_v)
    return q, k, v


def attend(spec: ModelSpec, b: Builder, q: Buffer, k: Buffer, v: Buffer, i: int, rope: Rope, factors: str | None = None) -> Buffer:
    """Rotate q and k, attend, project back to the width of the model."""
    layer = spec.layers[i]
    q = b.rope(q, Rope(layer.n_head, layer.head_dim_k, rope.n_rot, rope.style, rope.freq_base, rope.scaling), factors)
    k = b.rope(k, Rope(layer.n_head_kv, layer.head_dim_k, rope.n_rot, rope.style, rope.freq_base, rope.scaling), factors)
    heads = Attention(f"kv.{i}", layer.n_head, layer.n_head_kv, layer.head_dim_k, layer.head_dim_v, layer.head_dim_k**-0.5)
    return b.linear(b.attention(q, k, v, heads), f"blk.{i}.attn_output", spec.n_embd)


def ffn(spec: ModelSpec, b: Builder, x: Buffer, i: int) -> Buffer:
    """SwiGLU (arXiv 2002.05202): down(silu(gate) * up)."""
    n_ff = spec.layers[i].n_ff
    gate, up = b.linear(x, f"blk.{i}.ffn_gate", n_ff), b.linear(x, f"blk.{i}.ffn_up", n_ff)
    return b.linear(b.glu(gate, up), f"blk.{i}.ffn_down", spec.n_embd)


def experts(spec: ModelSpec, b: Builder, x: Buffer, i: int) -> Buffer:
    """A mixture of SwiGLU experts: softmax over all, the highest few renormalized (Mixtral, arXiv 2401.04088)."""
    layer, d = spec.layers[i], spec.n_embd
    logits = b.linear(x, f"blk.{i}.ffn_gate_inp", layer.n_expert)
    ids, weights = b.route(logits, Route(layer.n_expert, layer.n_expert_used))
    gate = b.expert_linear(x, ids, f"blk.{i}.ffn_gate_exps.weight", layer.n_expert, d, layer.n_ff)
    up = b.expert_linear(x, ids, f"blk.{i}.ffn_up_exps.weight", layer.n_expert, d, layer.n_ff)
    down = b.expert_linear(b.glu(gate, up), ids, f"blk.{i}.ffn_down_exps.weight", layer.n_expert, layer.n_ff, d)
    return b.expert_sum(down, weights)


def head(spec: ModelSpec, b: Builder, x: Buffer) -> None:
    """Final norm and logits of the wanted rows; tied to the embedding where the file has no output matrix."""
    with b.unit("head"):
        x = b.rms_norm(b.take_rows(x), "output_norm.weight", spec.norm_eps)
        b.output(b.linear(x, "output", spec.n_vocab, None if b.has("output.weight") else "token_embd.weight"))
