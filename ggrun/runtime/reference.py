"""The NumPy executor every other is held to: float32 weights (dequantized), activations and KV; one plain function an op kind.

Slow and obvious on purpose. It runs whole programs, knows no plan, and keeps every buffer of the last batch for `ggrun trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KV_BLOCK_TOKENS
from ggrun.program import params as p
from ggrun.program.kinds import KINDS
from ggrun.program.program import Op, Program
from ggrun.program.rope import frequencies
from ggrun.runtime.executor import Batch, Cancelled
from ggrun.runtime.kv_cells import decode, encode
from ggrun.runtime.kv_form import KvForm
from quant.format import format_by_name
from quant.reference import dequantize, quantize

F32 = NDArray[np.float32]
Array = NDArray[np.float32] | NDArray[np.int32]
CACHE_BYTES = 1 << 30  # dequantized weights kept between ops; larger models dequantize again


class RawTensor(Protocol):
    """A weight's bytes as the GGUF reader gives them."""

    @property
    def raw(self) -> NDArray[np.uint8]: ...


class ReferenceExecutor:
    """Executor for one whole program. n_kv_blocks: blocks of KV_BLOCK_TOKENS tokens its KV store holds.

    Keys and values are rounded to what type_k and type_v can say, and kept as float32.
    """

    def __init__(
        self, program: Program, tensors: Mapping[str, RawTensor], n_kv_blocks: int, type_k: str = "f32", type_v: str = "f32"
    ) -> None:
        self.program = program
        self.values: dict[str, Array] = {}
        self._tensors = tensors
        self._weights: dict[str, F32] = {}
        self._cached_bytes = 0
        self.notes: list[str] = []
        self.type_k, self.type_v = type_k, type_v
        self._abort = False
        tokens = n_kv_blocks * KV_BLOCK_TOKENS
        self.kv: dict[str, tuple[F32, F32]] = {
            s.name: (
                np.zeros((tokens, s.n_head_kv, s.head_dim_k), np.float32),
                np.zeros((tokens, s.n_head_kv, s.head_dim_v), np.float32),
            )
            for s in program.states.values()
        }

    def run(self, batch: Batch) -> F32:
        """Logits float32 [R, n_vocab] of the batch; all buffers stay in `values`."""
        return self._run(batch, self.program.ops)

    def run_hidden(self, batch: Batch) -> F32:
        """What the head takes, [T, n_embd]."""
        head = next(index for index, op in enumerate(self.program.ops) if op.kind == "take_rows")
        self._run(batch, self.program.ops[:head])
        return cast(F32, self.values[self.program.ops[head].inputs[0]])

    def _run(self, batch: Batch, ops: Sequence[Op]) -> F32:
        self._abort = False
        self.values = {"ids": batch.ids, "positions": batch.positions, "out_rows": batch.out_rows}
        result = ""
        for op in ops:
            if self._abort:
                raise Cancelled
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = OPS[op.kind](self, op, batch, [self.values[n] for n in op.inputs])
            self.values.update(zip(op.outputs, outputs, strict=True))
            result = op.outputs[-1]
        return cast(F32, self.values[result])

    def run_highest(self, batch: Batch, k: int) -> F32:
        """All logits: they are in memory anyway."""
        return self.run(batch)

    def abort(self) -> None:
        self._abort = True

    def copy_block(self, source: int, target: int) -> None:
        n = KV_BLOCK_TOKENS
        for k, v in self.kv.values():
            k[target * n : target * n + n] = k[source * n : source * n + n]
            v[target * n : target * n + n] = v[source * n : source * n + n]

    def read_block(self, block: int, into: NDArray[np.uint8]) -> None:
        """In the form of `runtime.kv_form`: cells are rounded already, so that quantizing them again gives their bytes."""
        cells = slice(block * KV_BLOCK_TOKENS, (block + 1) * KV_BLOCK_TOKENS)
        form = KvForm(self.program.states, self.type_k, self.type_v)
        for state, part in form.layers(into):
            for held, kind, views in zip(self.kv[state.name], (self.type_k, self.type_v), form.views(state, part)):
                encode(kind, held[cells].transpose(1, 0, 2), views)

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """The other way."""
        cells = slice(block * KV_BLOCK_TOKENS, (block + 1) * KV_BLOCK_TOKENS)
        form = KvForm(self.program.states, self.type_k, self.type_v)
        for state, part in form.layers(data):
            for held, kind, views in zip(self.kv[state.name], (self.type_k, self.type_v), form.views(state, part)):
                held[cells] = decode(kind, views).transpose(1, 0, 2)

    def settle(self) -> None:
        """Weights stay where they are."""

    def close(self) -> None:
        self._weights.clear()
        self.values.clear()
        self.kv.clear()

    def weight(self, name: str) -> F32:
        """A weight dequantized to float32, shape reversed(dims): [n_out, n_in] for matrices."""
        if name in self._weights:
            return self._weights[name]
        weight = self.program.weights[name]
        raw = self._tensors[name].raw.reshape(-1, weight.format.row_bytes(weight.dims[0]))
        values = dequantize(weight.format, raw).reshape(weight.dims[::-1])
        if self._cached_bytes + values.nbytes <= CACHE_BYTES:
            self._weights[name] = values
            self._cached_bytes += values.nbytes
        return values

    def weight_rows(self, name: str, rows: NDArray[np.int32]) -> F32:
        """Some rows of a matrix, without dequantizing the rest: float32 [len(rows), dims[0]]."""
        weight = self.program.weights[name]
        raw = self._tensors[name].raw.reshape(-1, weight.format.row_bytes(weight.dims[0]))
        return dequantize(weight.format, np.ascontiguousarray(raw[rows]))


def _embed(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    scale = np.float32(cast(p.Embed, op.params).scale)
    return (ex.weight_rows(op.weights[0], batch.ids) * scale,)


def _rms_norm(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    norm = cast(p.RmsNorm, op.params)
    parts = x[0].reshape(len(x[0]), norm.groups, x[0].shape[1] // norm.groups)
    scale = 1.0 / np.sqrt(np.mean(np.square(parts, dtype=np.float64), -1, keepdims=True) + norm.eps)
    return ((parts * scale.astype(np.float32) * ex.weight(op.weights[0])).reshape(x[0].shape),)


def _linear(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    y = cast(F32, x[0] @ ex.weight(op.weights[0]).T)
    return (y + ex.weight(op.weights[1]) if len(op.weights) == 2 else y,)


def _rope(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    rope = cast(p.Rope, op.params)
    freq, magnitude = frequencies(rope, ex.weight(op.weights[0]) if op.weights else None)
    angle = batch.positions.astype(np.float64)[:, None, None] * freq
    cos, sin = (np.cos(angle) * magnitude).astype(np.float32), (np.sin(angle) * magnitude).astype(np.float32)
    y = x[0].reshape(len(x[0]), rope.n_heads, rope.head_dim).copy()
    half = rope.n_rot // 2
    a, b = (slice(0, rope.n_rot, 2), slice(1, rope.n_rot, 2)) if rope.style == "norm" else (slice(0, half), slice(half, rope.n_rot))
    first, second = y[..., a].copy(), y[..., b].copy()
    y[..., a] = first * cos - second * sin
    y[..., b] = first * sin + second * cos
    return (y.reshape(x[0].shape),)


def _rounded(kind: str, x: Array) -> F32:
    fmt = format_by_name(kind.upper())
    return dequantize(fmt, quantize(fmt, cast(F32, x)))


def _attention(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    a = cast(p.Attention, op.params)
    n = len(x[0])
    keys, values = ex.kv[a.state]
    cells = batch.tables[batch.seqs, batch.positions // KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + batch.positions % KV_BLOCK_TOKENS
    keys[cells] = _rounded(ex.type_k, x[1].reshape(n, a.n_head_kv, a.head_dim_k))
    values[cells] = _rounded(ex.type_v, x[2].reshape(n, a.n_head_kv, a.head_dim_v))
    q = x[0].reshape(n, a.n_head_kv, a.n_head // a.n_head_kv, a.head_dim_k)
    out = np.empty((n, a.n_head_kv, a.n_head // a.n_head_kv, a.head_dim_v), np.float32)
    for t in range(n):
        position = int(batch.positions[t])
        first = max(0, position - a.window + 1) if a.window else 0
        seen = np.arange(first, position + 1)
        cells = batch.tables[batch.seqs[t], seen // KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + seen % KV_BLOCK_TOKENS
        scores = np.einsum("hgd,chd->hgc", q[t], keys[cells]) * np.float32(a.scale)
        if a.softcap:
            scores = np.tanh(scores / np.float32(a.softcap)) * np.float32(a.softcap)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[t] = np.einsum("hgc,chd->hgd", weights / weights.sum(-1, keepdims=True), values[cells])
    return (out.reshape(n, a.n_head * a.head_dim_v),)


def _add(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    return (x[0] + x[1],)


def _glu(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    gate, up = cast(list[F32], x)
    return (cast(F32, gate / (1.0 + np.exp(-gate)) * up),)


def _route(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    route = cast(p.Route, op.params)
    probability = np.exp(x[0] - x[0].max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    ids = np.argsort(-probability, axis=-1, kind="stable")[:, : route.n_used].astype(np.int32)
    weights = np.take_along_axis(probability, ids, -1)
    if route.normalize:
        weights = weights / weights.sum(-1, keepdims=True)
    return ids, (weights * np.float32(route.scale)).astype(np.float32)


def _expert_linear(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    e = cast(p.ExpertLinear, op.params)
    weight, (rows, ids) = ex.weight(op.weights[0]), x
    y = np.empty((len(rows), e.n_used, weight.shape[1]), np.float32)
    slots = rows.reshape(len(rows), -1, weight.shape[2])
    for t in range(len(rows)):
        for s in range(e.n_used):
            y[t, s] = weight[ids[t, s]] @ slots[t, 0 if e.shared_input else s]
    return (y.reshape(len(rows), -1),)


def _expert_sum(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    rows, weights = x
    slots = rows.reshape(len(rows), weights.shape[1], -1)
    return (np.einsum("tsn,ts->tn", slots, weights),)


def _take_rows(ex: ReferenceExecutor, op: Op, batch: Batch, x: list[Array]) -> tuple[Array, ...]:
    return (x[0][batch.out_rows],)


OPS: dict[str, Callable[[ReferenceExecutor, Op, Batch, list[Array]], tuple[Array, ...]]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "add": _add,
    "glu": _glu,
    "route": _route,
    "expert_linear": _expert_linear,
    "expert_sum": _expert_sum,
    "take_rows": _take_rows,
}
assert OPS.keys() == KINDS.keys()
