"""The network: a llama as GGUF means it (interleaved rotary pairs, grouped keys and values, gated SiLU, tied embeddings).

Knows: torch. Must not know: tokens' meaning, data or files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Every row length (width, feed_forward, heads * head) is a multiple of 256, so any block format fits."""

    vocabulary: int = 3072
    width: int = 512
    layers: int = 4
    feed_forward: int = 512
    heads: int = 8
    kv_heads: int = 2
    head: int = 64
    theta: float = 10000.0
    context: int = 4096

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d, f, q = shape.width, shape.feed_forward, shape.heads * shape.head
        self.attn_norm, self.ffn_norm = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, q + 2 * shape.kv_heads * shape.head, bias=False)
        self.output = nn.Linear(q, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * f, bias=False)
        self.down = nn.Linear(f, d, bias=False)
        depth = 0.5 / math.sqrt(2 * shape.layers)
        for linear, scale in ((self.qkv, 0.5), (self.gate_up, 0.5), (self.output, depth), (self.down, depth)):
            nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (batch, length, _) = self.shape, h.shape
        x = (
            self.qkv(F.rms_norm(h, (s.width,), self.attn_norm, EPSILON))
            .view(batch, length, s.heads + 2 * s.kv_heads, s.head)
            .transpose(1, 2)
        )
        qk, v = x.split((s.heads + s.kv_heads, s.kv_heads), 1)
        pairs = qk.unflatten(-1, (s.head // 2, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        q, k = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).split((s.heads, s.kv_heads), 1)
        repeat = s.heads // s.kv_heads
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=True)
        h = h + self.output(y.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(F.rms_norm(h, (s.width,), self.ffn_norm, EPSILON)).split(s.feed_forward, -1)
        return h + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * 0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        angles = torch.outer(torch.arange(shape.context + 1).float(), shape.theta ** (-torch.arange(0, shape.head, 2).float() / shape.head))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """float[n_wanted, vocabulary]: logits at the flat positions `wanted` of int64 ids[batch, length]."""
        length = ids.shape[1]
        h = F.embedding(ids, self.embedding)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else h.dtype
        cos, sin = self.cos[:length].to(dtype), self.sin[:length].to(dtype)
        for layer in self.layers:
            h = layer(h, cos, sin)
        h = F.rms_norm(h, (self.shape.width,), self.norm, EPSILON).flatten(0, 1)[wanted]
        return F.linear(h, self.embedding)

    def matrices(self) -> list[nn.Parameter]:
        """The layers' matrices (for Muon); everything else goes to AdamW."""
        return [p for name, p in self.named_parameters() if p.ndim == 2 and name != "embedding"]

    def others(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if p.ndim != 2 or name == "embedding"]


@torch.no_grad()
def q8_0(weight: Tensor) -> Tensor:
    """The weight after a round trip through GGUF's Q8_0: blocks of 32 along a row, a float16 scale, int8 values."""
    blocks = weight.float().view(-1, 32)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    return (torch.where(scale > 0, blocks / scale, 0).round().clamp(-127, 127) * scale).view_as(weight)
