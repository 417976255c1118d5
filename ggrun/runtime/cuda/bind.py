"""From a plan's steps to launches: addresses, sizes and parameters for a batch of so many tokens. Pure arithmetic; knows no driver.

One small function a kernel. Which kernel, grid and block it becomes is the affair of `matmul`, `rows` and `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import KvPlace, Segment, Shape
from ggrun.program import params as p
from ggrun.program.program import Buffer, Op, Program
from ggrun.program.rope import frequencies
from ggrun.runtime.cuda import attention, inputs, matmul, reduce, rows
from ggrun.runtime.cuda.device import BATCH, HIGHEST, KEPT, CudaStep, rope_names
from ggrun.runtime.cuda.inputs import Counts
from ggrun.runtime.cuda.launch import Arch, Launch

Launches = Sequence[Launch]


class Tensor(Protocol):
    """A weight in the file."""

    @property
    def n_bytes(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    def read(self, start: int, target: memoryview) -> None: ...
    def release(self) -> None: ...


class Binder:
    """Launches of a segment whose arena (weights, KV, scratch, streamed weights) lies at an address."""

    def __init__(self, program: Program, segment: Segment, shape: Shape, tensors: Mapping[str, Tensor], arch: Arch, address: int) -> None:
        self.program = program
        self.segment = segment
        self.shape = shape
        self.arch = arch
        self._tensors = tensors
        streams = address + segment.weight_bytes + segment.kv_bytes + segment.scratch_bytes
        self.streams = streams  # where the streaming arena starts
        self._weights = {name: address + offset for name, offset in segment.weights.items()}
        for stream in segment.streams:
            half = streams + stream.half * segment.half_bytes
            self._weights |= {name: half + offset for name, offset in stream.weights.items()}
        self._kv = address + segment.weight_bytes
        self._scratch = self._kv + segment.kv_bytes
        self._magnitudes: dict[str, float] = {}
        self.batch = self.area(BATCH)

    def launches(self, first: int, last: int, counts: Counts) -> list[Launch]:
        """Steps first..last-1 for a batch. Steps over logit rows vanish when none are wanted."""
        found: list[Launch] = []
        for step in self.segment.steps[first:last]:
            assert isinstance(step, CudaStep)
            call = _Call(self, step, counts)
            if call.n_rows:
                found += BIND[step.kernel.partition(".")[0]](call)
        return found

    def highest(self, output: Buffer, n_rows: int, k: int) -> list[Launch]:
        """Launches that leave the k highest of each row of logits in the area HIGHEST, see `reduce`."""
        return reduce.top_k(self.area(output.name), output.width, n_rows, k, self.area(KEPT), self.area(HIGHEST))

    def constants(self) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """(address, values) of what must be on the device beside the weights: rotary frequencies, float64."""
        for step in self.segment.lowered.steps:
            if step.kernel == "rope_table":
                assert isinstance(step, CudaStep)
                yield self.area(rope_names(step.ops[0])[1]), self._frequencies(step.ops[0])[0]

    def magnitude(self, op: Op) -> float:
        """What a rotation multiplies the vector's length by."""
        name = rope_names(op)[0]
        if name not in self._magnitudes:
            self._magnitudes[name] = self._frequencies(op)[1]
        return self._magnitudes[name]

    def _frequencies(self, op: Op) -> tuple[NDArray[np.float64], float]:
        assert isinstance(op.params, p.Rope)
        factors = None
        if op.weights:
            raw = np.empty(self._tensors[op.weights[0]].n_bytes, np.uint8)
            self._tensors[op.weights[0]].read(0, raw.data)
            factors = raw.view(np.float32)
        freq, magnitude = frequencies(op.params, factors)
        return np.ascontiguousarray(freq, np.float64), magnitude

    def area(self, name: str) -> int:
        """Address of a buffer or work area."""
        return self._scratch + self.segment.offsets[name]

    def weight(self, name: str) -> int:
        return self._weights[name]

    def row_bytes(self, name: str) -> int:
        return self._tensors[name].row_bytes

    def kv_place(self, state: str) -> KvPlace:
        """A layer's arena, with its address for an offset."""
        place = self.segment.kv[state]
        return KvPlace(self._kv + place.offset, place.block_bytes)


def classes(shape: Shape) -> list[Counts]:
    """Counts that between them need every kernel that any batch can need."""
    tokens = {*matmul.TOKEN_STEPS, *attention.TOKEN_STEPS, *inputs.BUCKETS, shape.n_ubatch, shape.n_logits}
    buckets = inputs.buckets(shape)
    found = []
    for n in sorted(n for n in tokens if n <= shape.n_ubatch):
        n_rows = min(n, shape.n_logits)
        found += [Counts(n, n_rows)] + [Counts(n, n_rows, 1)] * (n not in buckets)
    return found


class _Call:
    """A step in a batch: what the functions below ask for."""

    def __init__(self, binder: Binder, step: CudaStep, counts: Counts) -> None:
        self.b = binder
        self.step = step
        self.counts = counts
        self.op = step.ops[-1]
        self.arch = binder.arch
        self.n_tokens = counts.n_tokens
        self.n_rows = self._n_rows()
        self.places = inputs.places(counts, binder.shape)

    def _n_rows(self) -> int:
        buffer = self.b.program.buffers[self.op.outputs[0]]
        return self.counts.n_tokens if buffer.rows == "T" else self.counts.n_rows

    def input(self, index: int) -> int:
        return self.b.area(self.step.inputs[index])

    def output(self, index: int) -> int:
        return self.b.area(self.step.outputs[index])

    def result(self, buffer: str) -> int:
        """Address of a program buffer if the step has to write it, else 0."""
        return self.b.area(buffer) if buffer in self.step.outputs else 0

    def quantized(self, buffer: str) -> int:
        """Address of a program buffer's quantized rows if the step has to write them, else 0."""
        return next((self.b.area(name) for name in self.step.outputs if name.startswith(f"{buffer}:q8:")), 0)

    def batch(self, part: str) -> int:
        """Address of a part of the batch."""
        return self.b.batch + int(getattr(self.places, part))

    def weight(self, index: int) -> int:
        """Address of a weight of the step, 0 when it has none so far."""
        return self.b.weight(self.step.weights[index]) if index < len(self.step.weights) else 0

    def width(self, buffer: str) -> int:
        return self.b.program.buffers[buffer].width

    def matrix(self, name: str) -> tuple[str, int, int, int]:
        """A matrix's format, address, bytes of a row, elements of a row."""
        weight = self.b.program.weights[name]
        return weight.format.name, self.b.weight(name), self.b.row_bytes(name), weight.dims[0]


def _embed(c: _Call) -> Launches:
    assert isinstance(c.op.params, p.Embed)
    fmt, w, row_bytes, n = c.matrix(c.op.weights[0])
    return [matmul.embed(fmt, c.batch("ids"), w, row_bytes, c.output(0), n, c.op.params.scale, c.n_rows)]


def _norm(c: _Call) -> Launches:
    assert isinstance(c.op.params, p.RmsNorm)
    (y,) = c.op.outputs
    x, add, total = (c.input(0), c.input(1), c.output(0)) if len(c.step.ops) == 2 else (c.input(0), 0, 0)
    return [rows.norm(x, add, total, c.weight(0), c.result(y), c.quantized(y), c.width(y), c.op.params.eps, c.n_rows)]


def _norm_groups(c: _Call) -> Launches:
    assert isinstance(c.op.params, p.RmsNorm)
    n, groups = c.width(c.op.outputs[0]), c.op.params.groups
    return [rows.rms_norm_groups(c.input(0), c.weight(0), c.output(0), n, groups, c.op.params.eps, c.n_rows)]


def _add(c: _Call) -> Launches:
    return [rows.add(c.input(0), c.input(1), c.output(0), c.width(c.op.outputs[0]) * c.n_rows)]


def _quantize(c: _Call) -> Launches:
    x, k = c.step.inputs[0], c.b.program.weights[c.op.weights[0]].dims[0]
    return [matmul.quantize(c.input(0), c.output(0), k, c.n_rows * (c.width(x) // k))]


def _matmul(c: _Call) -> Launches:
    fmt, w, row_bytes, k = c.matrix(c.op.weights[0])
    return matmul.matmul(fmt, w, row_bytes, c.input(0), c.output(0), c.weight(1), k, c.width(c.op.outputs[0]), c.n_rows, c.arch)


def _gated(c: _Call) -> Launches:
    """One launch for few tokens, which lets the gate's buffer take the product when only its quantized rows are wanted."""
    gate, up, glu = c.step.ops
    (y,) = glu.outputs
    fmt, w_gate, row_bytes, k = c.matrix(gate.weights[0])
    _, w_up, _, _ = c.matrix(up.weights[0])
    n, x = c.width(y), c.input(0)
    target = c.result(y) or c.output(0)
    fused = matmul.gated(fmt, w_gate, fmt, w_up, row_bytes, x, target, k, n, c.n_rows, c.arch)
    if fused is not None:
        return [*fused, matmul.quantize(target, c.quantized(y), n, c.n_rows)] if c.quantized(y) else fused
    return [
        *matmul.matmul(fmt, w_gate, row_bytes, x, c.output(0), 0, k, n, c.n_rows, c.arch),
        *matmul.matmul(fmt, w_up, row_bytes, x, c.output(1), 0, k, n, c.n_rows, c.arch),
        *_glu_rows(c, y, c.output(0), c.output(1)),
    ]


def _glu(c: _Call) -> Launches:
    return _glu_rows(c, c.op.outputs[0], c.input(0), c.input(1))


def _glu_rows(c: _Call, y: str, gate: int, up: int) -> Launches:
    """Rows of a mixture's slots are quantized one by one: the area's name says how long they are."""
    area = next((name for name in c.step.outputs if name.startswith(f"{y}:q8:")), "")
    k = int(area.rpartition(":")[2]) if area else c.width(y)
    return [rows.glu(gate, up, c.result(y), c.quantized(y), k, c.n_rows * (c.width(y) // k))]


def _rope_table(c: _Call) -> Launches:
    assert isinstance(c.op.params, p.Rope)
    freq = c.b.area(rope_names(c.op)[1])
    return [rows.rope_table(c.batch("positions"), freq, c.output(0), c.op.params.n_rot // 2, c.b.magnitude(c.op), c.n_tokens)]


def _rope(c: _Call) -> Launches:
    r = c.op.params
    assert isinstance(r, p.Rope)
    return [rows.rope(c.input(0), c.input(1), c.output(0), r.n_heads, r.head_dim, r.n_rot, r.style == "neox", c.n_tokens)]


def _kv(c: _Call) -> tuple[p.Attention, KvPlace, tuple[int, int, int, int]]:
    """The attention, its layer's arena, and where positions, sequences and tables are, with a table's entries."""
    assert isinstance(c.op.params, p.Attention)
    width = inputs.table_blocks(c.b.shape)
    return c.op.params, c.b.kv_place(c.op.params.state), (c.batch("positions"), c.batch("seqs"), c.batch("tables"), width)


def _kv_store(c: _Call) -> Launches:
    params, place, batch = _kv(c)
    kinds = c.b.shape.type_k, c.b.shape.type_v
    return [attention.kv_store(c.input(0), c.input(1), place.offset, *batch, params, *kinds, place.block_bytes, c.n_tokens)]


def _rope_store(c: _Call) -> Launches:
    params, place, batch = _kv(c)
    rope, kinds = c.step.ops[0].params, (c.b.shape.type_k, c.b.shape.type_v)
    assert isinstance(rope, p.Rope)
    q, k, v, table = (c.input(i) for i in range(4))
    return [attention.rope_store(q, c.output(0), k, v, table, place.offset, *batch, params, rope, *kinds, place.block_bytes, c.n_tokens)]


def _attention(c: _Call) -> Launches:
    params, place, batch = _kv(c)
    shape = c.b.shape
    return attention.attention(
        c.input(0),
        c.output(0),
        place.offset,
        *batch,
        c.batch("tiles"),
        c.counts.n_tiles,
        c.input(1),
        params,
        shape.type_k,
        shape.type_v,
        place.block_bytes,
        c.n_tokens,
        c.counts.n_tiles == 0,
        c.arch,
    )


def _route(c: _Call) -> Launches:
    r = c.op.params
    assert isinstance(r, p.Route)
    return [rows.route(c.input(0), c.output(0), c.output(1), r.n_expert, r.n_used, r.normalize, r.scale, c.n_tokens)]


def _group_experts(c: _Call) -> Launches:
    e = c.op.params
    assert isinstance(e, p.ExpertLinear)
    return matmul.group_experts(c.input(0), c.output(0), c.n_tokens, e.n_used, e.n_expert)


def _expert_matmul(c: _Call) -> Launches:
    e = c.op.params
    assert isinstance(e, p.ExpertLinear)
    fmt, w, row_bytes, k = c.matrix(c.op.weights[0])
    n_out = c.b.program.weights[c.op.weights[0]].dims[1]
    x, ids, lists = (c.input(i) for i in range(3))
    return matmul.expert_matmul(
        fmt,
        w,
        row_bytes,
        row_bytes * n_out,
        x,
        ids,
        lists,
        c.output(0),
        k,
        n_out,
        c.n_tokens,
        e.n_used,
        e.n_expert,
        e.shared_input,
        c.arch,
    )


def _expert_sum(c: _Call) -> Launches:
    assert isinstance(c.op.params, p.ExpertSum)
    return [rows.expert_sum(c.input(0), c.input(1), c.output(0), c.width(c.op.outputs[0]), c.op.params.n_used, c.n_tokens)]


def _take_rows(c: _Call) -> Launches:
    return [rows.take_rows(c.input(0), c.batch("out_rows"), c.output(0), c.width(c.op.outputs[0]), c.n_rows)]


BIND: dict[str, Callable[[_Call], Launches]] = {
    "embed": _embed,
    "norm": _norm,
    "add_norm": _norm,
    "norm_groups": _norm_groups,
    "add": _add,
    "quantize": _quantize,
    "matmul": _matmul,
    "gated": _gated,
    "glu": _glu,
    "rope_table": _rope_table,
    "rope": _rope,
    "rope_store": _rope_store,
    "kv_store": _kv_store,
    "attention": _attention,
    "route": _route,
    "group_experts": _group_experts,
    "expert_matmul": _expert_matmul,
    "expert_sum": _expert_sum,
    "take_rows": _take_rows,
}
