"""From a plan's steps to descriptors: puts addresses, strides and parameters where the kernels look for them.

One small function a kernel; each returns the descriptor's fields (see `layout`), which the kernel's docstring explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggrun.plan.device import Segment, Shape, Step
from ggrun.program import params as p
from ggrun.program.program import Program
from ggrun.program.rope import frequencies
from ggrun.runtime.cpu import sizes
from ggrun.runtime.cpu.compile import Kernel
from ggrun.runtime.cpu.layout import float_bits, pack

Fields = dict[str, int]
ROW_ELEMENTS = 16384  # elements of row-wise ops handed out at once: some microseconds of work


class Tensor(Protocol):
    """A loaded weight."""

    @property
    def address(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    def read(self, start: int, target: memoryview) -> None: ...
    def release(self) -> None: ...


class Binder:
    """Descriptors of a segment whose scratch and KV lie at given addresses."""

    def __init__(
        self,
        program: Program,
        segment: Segment,
        shape: Shape,
        tensors: Mapping[str, Tensor],
        kernels: Mapping[str, Kernel],
        scratch: int,
        kv: int,
    ) -> None:
        self.program = program
        self.segment = segment
        self.shape = shape
        self.tensors = tensors
        self.kernels = kernels
        self.scratch = scratch
        self.kv = kv
        self.constants: list[NDArray[np.float64]] = []  # what descriptors point to beside arena and weights

    def descriptors(self) -> bytes:
        """All steps, one descriptor after the other."""
        return b"".join(pack(self._step(step)) for step in self.segment.steps)

    def _step(self, step: Step) -> Fields:
        kernel = self.kernels[step.kernel]
        fields = BIND[step.kernel.partition(".")[0]](self, step)
        fields["kernel"] = kernel.address
        if kernel.function is not None:
            fields["call"] = kernel.function.address
        return fields

    def area(self, name: str) -> int:
        """Address of a buffer or work area."""
        return self.scratch + self.segment.offsets[name]

    def matrix(self, field: str, name: str) -> Fields:
        """A program buffer as `field` and its row stride."""
        return {field: self.area(name), f"{field}_stride": self.program.buffers[name].row_bytes}

    def rows(self, name: str) -> Fields:
        """A step over the rows of a buffer: which count it follows, and how many are handed out at once."""
        buffer = self.program.buffers[name]
        return {"per_logit": int(buffer.rows == "R"), "tile": max(1, ROW_ELEMENTS // buffer.width)}

    def weight(self, name: str) -> Fields:
        tensor = self.tensors[name]
        return {"w": tensor.address, "w_stride": tensor.row_bytes}

    def width(self, name: str) -> int:
        return self.program.buffers[name].width

    def activation(self, kernel: str, k: int) -> Fields:
        """Tile and bytes of a tile of the layout that a quantizing step makes."""
        function = self.kernels[kernel].function
        tile: int = function.tile  # type: ignore[union-attr]
        return {"tile": tile, "tile_bytes": function.bytes(k, tile)}  # type: ignore[union-attr]


def _embed(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.Embed)
    (y,) = step.outputs
    return {**b.matrix("y", y), **b.rows(y), **b.weight(step.weights[0]), "n": b.width(y), "f0": float_bits(step.params.scale)}


def _rms_norm(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.RmsNorm)
    (x,), (y,), norm = step.inputs, step.outputs, step.params
    return {
        **b.matrix("x", x),
        **b.matrix("y", y),
        **b.rows(y),
        **b.weight(step.weights[0]),
        "n": b.width(x) // norm.groups,
        "heads": norm.groups,
        "f0": float_bits(norm.eps),
    }


def _quantize(b: Binder, step: Step) -> Fields:
    (x,), (y,) = step.inputs, step.outputs
    k = b.width(x)
    function = b.kernels[step.kernel].function
    n_rows = b.shape.n_ubatch if b.program.buffers[x].rows == "T" else b.shape.n_logits
    tiers = (function.tier,)  # type: ignore[union-attr]
    assert b.segment.lowered.work[y] >= sizes.activation_bytes(function.name, tiers, k, n_rows)  # type: ignore[union-attr]
    return {**b.matrix("x", x), **b.rows(x), **b.activation(step.kernel, k), "y": b.area(y), "k": k}


def _matmul(b: Binder, step: Step) -> Fields:
    (x,), (y,) = step.inputs, step.outputs
    function = b.kernels[step.kernel].function
    bias = b.tensors[step.weights[1]].address if len(step.weights) == 2 else 0
    return {
        **b.matrix("y", y),
        **b.rows(y),
        **b.weight(step.weights[0]),
        "x": b.area(x),
        "k": b.program.weights[step.weights[0]].dims[0],
        "n": b.width(y),
        "bias": bias,
        "tile": function.row_tile,  # type: ignore[union-attr]
    }


def _rope_table(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.Rope)
    rope = step.params
    factors = None
    if step.weights:
        from ctypes import c_float

        factors = np.array((c_float * (rope.n_rot // 2)).from_address(b.tensors[step.weights[0]].address), np.float32)
    freq, magnitude = frequencies(rope, factors)
    freq = np.ascontiguousarray(freq, np.float64)
    b.constants.append(freq)
    return {
        "y": b.area(step.outputs[0]),
        "y_stride": 4 * rope.n_rot,
        "w": freq.ctypes.data,
        "n": rope.n_rot // 2,
        "f0": float_bits(magnitude),
        "tile": 8,
    }


def _rope(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.Rope)
    (x, table), (y,), rope = step.inputs, step.outputs, step.params
    return {
        **b.matrix("x", x),
        **b.matrix("y", y),
        **b.rows(y),
        "z": b.area(table),
        "z_stride": 4 * rope.n_rot,
        "n": rope.n_rot // 2,
        "heads": rope.n_heads,
        "dim_k": rope.head_dim,
        "flags": int(rope.style == "neox"),
    }


def _query_tiles(b: Binder, step: Step) -> Fields:
    return {"y": b.area(step.outputs[0])}


def _heads(b: Binder, step: Step) -> Fields:
    """What storing and reading the KV cache have in common."""
    assert isinstance(step.params, p.Attention)
    a = step.params
    place = b.segment.kv[a.state]
    return {
        "heads": a.n_head,
        "kv_heads": a.n_head_kv,
        "dim_k": a.head_dim_k,
        "dim_v": a.head_dim_v,
        "n": sizes.kv_head_bytes(a.head_dim_k, a.head_dim_v, b.shape.type_k, b.shape.type_v),
        "bits_k": sizes.KV_BITS[b.shape.type_k],
        "bits_v": sizes.KV_BITS[b.shape.type_v],
        "values_at": sizes.kv_part_bytes(b.shape.type_k, a.head_dim_k),
        "kv": b.kv + place.offset,
        "kv_stride": place.block_bytes,
    }


def _kv_store(b: Binder, step: Step) -> Fields:
    k, v = step.inputs
    return {**_heads(b, step), **b.matrix("x", k), **b.matrix("z", v)}


def _attention(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.Attention)
    a, (q, tiles) = step.params, step.inputs
    return {
        **_heads(b, step),
        **b.matrix("x", q),
        **b.matrix("y", step.outputs[0]),
        **sizes.attention_scratch(a)[0],
        "lists": b.area(tiles),
        "window": a.window,
        "f0": float_bits(a.scale),
        "f1": float_bits(a.softcap),
    }


def _pointwise(b: Binder, step: Step) -> Fields:
    (x, z), (y,) = step.inputs, step.outputs
    return {**b.matrix("x", x), **b.matrix("z", z), **b.matrix("y", y), **b.rows(y), "n": b.width(y)}


def _route(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.Route)
    (x,), (ids, weights), route = step.inputs, step.outputs, step.params
    return {
        **b.matrix("x", x),
        **b.matrix("y", ids),
        **b.matrix("v", weights),
        "experts": route.n_expert,
        "used": route.n_used,
        "flags": int(route.normalize),
        "f0": float_bits(route.scale),
        "tile": 8,
    }


def _lists(b: Binder, step: Step) -> Fields:
    """The shape of the lists of entries; `n` is the most entries a batch can have."""
    assert isinstance(step.params, p.ExpertLinear)
    return {"experts": step.params.n_expert, "used": step.params.n_used}


def _group_experts(b: Binder, step: Step) -> Fields:
    (ids,), (lists,) = step.inputs, step.outputs
    assert isinstance(step.params, p.ExpertLinear)
    return {**_lists(b, step), **b.matrix("x", ids), "y": b.area(lists), "n": b.shape.n_ubatch * step.params.n_used}


def _quantize_experts(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.ExpertLinear)
    (x, lists), shared = step.inputs, step.params.shared_input
    k = b.width(x) if shared else b.width(x) // step.params.n_used
    return {
        **_lists(b, step),
        **b.activation(step.kernel, k),
        "x": b.area(x),
        "x_stride": 4 * k,
        "y": b.area(step.outputs[0]),
        "k": k,
        "n": b.shape.n_ubatch * step.params.n_used,
        "lists": b.area(lists),
        "flags": int(shared),
    }


def _expert_matmul(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.ExpertLinear)
    (x, lists), (y,) = step.inputs, step.outputs
    weight = b.program.weights[step.weights[0]]
    k, n = weight.dims[0], weight.dims[1]
    return {
        **_lists(b, step),
        **b.activation(f"quantize_experts.{weight.format.activation}", k),
        **b.weight(step.weights[0]),
        "x": b.area(x),
        "y": b.area(y),
        "k": k,
        "n": n,
        "lists": b.area(lists),
        "stage": sizes.expert_stage_bytes(b.shape.n_ubatch),
    }


def _expert_sum(b: Binder, step: Step) -> Fields:
    assert isinstance(step.params, p.ExpertSum)
    (x, weights), (y,) = step.inputs, step.outputs
    return {
        **b.matrix("x", x),
        **b.matrix("z", weights),
        **b.matrix("y", y),
        **b.rows(x),
        "n": b.width(y),
        "used": step.params.n_used,
    }


def _take_rows(b: Binder, step: Step) -> Fields:
    x, _ = step.inputs
    (y,) = step.outputs
    return {**b.matrix("x", x), **b.matrix("y", y), **b.rows(y), "n": b.width(y)}


BIND: dict[str, Callable[[Binder, Step], Fields]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "quantize": _quantize,
    "matmul": _matmul,
    "rope_table": _rope_table,
    "rope": _rope,
    "query_tiles": _query_tiles,
    "kv_store": _kv_store,
    "attention": _attention,
    "add": _pointwise,
    "glu_silu": _pointwise,
    "route": _route,
    "group_experts": _group_experts,
    "quantize_experts": _quantize_experts,
    "expert_matmul": _expert_matmul,
    "expert_sum": _expert_sum,
    "take_rows": _take_rows,
}
