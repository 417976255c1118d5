"""ModelSpec: what the metadata say about a model, read once, checked, in GGUF's own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ggrun.errors import GgrunError
from ggrun.program.params import RopeScaling

T = TypeVar("T", int, float, str, bool)


class SpecError(GgrunError):
    """Metadata that are missing, of the wrong type, or contradict each other."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block: heads, head widths, FFN width, experts."""

    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_ff: int
    n_expert: int = 0
    n_expert_used: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Architecture, widths, vocabulary and layers of one model."""

    architecture: str
    name: str
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    norm_eps: float
    n_rot: int
    rope_freq_base: float
    rope_scaling: RopeScaling
    layers: tuple[LayerSpec, ...]


class Reader:
    """Typed reads of `ARCH.key` metadata: required or with a default, each naming the key when it is wrong."""

    def __init__(self, metadata: Mapping[str, object], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = f"{architecture}."

    def has(self, key: str) -> bool:
        return self._prefix + key in self._metadata

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key; ints are accepted for floats. Without a default the key is required."""
        name = self._prefix + key
        value = self._metadata.get(name)
        if value is None:
            if default is None:
                raise SpecError(f"metadata key {name} is missing")
            return default
        return self._typed(name, value, kind)

    def positive(self, key: str, default: int | None = None, limit: int = 1 << 24) -> int:
        """An int in 1..limit."""
        value = self.get(key, int, default)
        if not 1 <= value <= limit:
            raise SpecError(f"metadata key {self._prefix}{key} is {value}, outside 1..{limit}")
        return value

    def per_layer(self, key: str, n_layers: int, default: int | None = None) -> list[int]:
        """A positive int for every layer: one value for all, or an array of n_layers."""
        name = self._prefix + key
        value = self._metadata.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != n_layers:
                raise SpecError(f"metadata key {name} has {len(value)} values for {n_layers} layers")
            values = [self._typed(name, v, int) for v in value]
        else:
            values = [self.positive(key, default)] * n_layers
        for v in values:
            if not 1 <= v <= 1 << 24:
                raise SpecError(f"metadata key {name} holds {v}, which no layer of this architecture can have")
        return values

    def _typed(self, name: str, value: object, kind: type[T]) -> T:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SpecError(f"metadata key {name} is of type {type(value).__name__}, not {kind.__name__}")
        return value


def rope_scaling(read: Reader, n_ctx_train: int) -> RopeScaling:
    """GGUF `rope.scaling.*`; the old `rope.scale_linear` counts as linear."""
    kind = read.get("rope.scaling.type", str, "")
    factor = read.get("rope.scaling.factor", float, read.get("rope.scale_linear", float, 1.0))
    attn_factor = read.get("rope.scaling.attn_factor", float, 1.0)
    if kind == "":
        kind = "linear" if factor not in (0.0, 1.0) else "none"
    if kind not in ("none", "linear", "yarn"):
        raise SpecError(f"rope.scaling.type {kind!r} is not supported for this architecture (none, linear and yarn are)")
    if kind != "none" and not 0.0 < factor < 1e6:
        raise SpecError(f"rope.scaling.factor is {factor}, which is no scaling")
    n_ctx_orig = read.positive("rope.scaling.original_context_length", n_ctx_train, limit=1 << 30)
    return RopeScaling(
        "none" if kind == "none" else "linear" if kind == "linear" else "yarn",
        factor if kind != "none" else 1.0,
        n_ctx_orig,
        attn_factor=attn_factor,
        beta_fast=read.get("rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=read.get("rope.scaling.yarn_beta_slow", float, 1.0),
    )


def read_spec(metadata: Mapping[str, object], architecture: str, n_vocab: int) -> ModelSpec:
    """Read what decoder-only transformers share. n_vocab is the row count of token_embd.weight. Raises SpecError."""
    read = Reader(metadata, architecture)
    n_layers = read.positive("block_count", limit=1024)
    n_embd = read.positive("embedding_length")
    n_head = read.per_layer("attention.head_count", n_layers)
    n_head_kv = read.per_layer("attention.head_count_kv", n_layers) if read.has("attention.head_count_kv") else n_head
    head_dim = read.positive("attention.key_length", max(1, n_embd // n_head[0]), limit=4096)
    head_dim_v = read.positive("attention.value_length", max(1, n_embd // n_head[0]), limit=4096)
    n_ff = read.per_layer("feed_forward_length", n_layers)
    n_expert, n_used = read.get("expert_count", int, 0), read.get("expert_used_count", int, 0)
    if n_expert and not 0 < n_used <= n_expert <= 4096:
        raise SpecError(f"metadata key {architecture}.expert_used_count is {n_used} of {n_expert} experts")
    for h, kv in zip(n_head, n_head_kv, strict=True):
        if h % kv:
            raise SpecError(f"{architecture}.attention.head_count {h} is not a multiple of head_count_kv {kv}")
    n_ctx_train = read.positive("context_length", limit=1 << 30)
    n_rot = read.positive("rope.dimension_count", head_dim, limit=4096)
    if n_rot > head_dim or n_rot % 2:
        raise SpecError(f"{architecture}.rope.dimension_count is {n_rot} of a head's {head_dim} elements")
    freq_base = read.get("rope.freq_base", float, 10000.0)
    norm_eps = read.get("attention.layer_norm_rms_epsilon", float)
    if not 1.0 < freq_base < 1e12 or not 0.0 <= norm_eps < 1.0:
        raise SpecError(f"{architecture}.rope.freq_base {freq_base} or layer_norm_rms_epsilon {norm_eps} is out of range")
    layers = tuple(
        LayerSpec(n_head[i], n_head_kv[i], head_dim, head_dim_v, n_ff[i], n_expert, n_used if n_expert else 0) for i in range(n_layers)
    )
    name = metadata.get("general.name")
    return ModelSpec(
        architecture,
        name if isinstance(name, str) else "",
        n_ctx_train,
        n_embd,
        n_vocab,
        norm_eps,
        n_rot,
        freq_base,
        rope_scaling(read, n_ctx_train),
        layers,
    )
