"""Builds a Program from a file's tensors: one method per op kind, each checking names and shapes as it goes.

Knows tensor extents and nothing of their bytes, of devices or of architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from ggrun.program import params as p
from ggrun.program.program import Buffer, Dtype, KvState, Op, Program, ProgramError, Role, Rows, TensorLike, Weight


class Builder:
    """Collects ops in order. Every method returns the buffer it writes; units are opened with `unit(name)`."""

    def __init__(self, tensors: Mapping[str, TensorLike], n_vocab: int) -> None:
        self._tensors = tensors
        self._n_vocab = n_vocab
        self._ops: list[Op] = []
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, Weight] = {}
        self._states: dict[str, KvState] = {}
        self._units: list[str] = []
        self._unit = ""
        self.ids = self._buffer("ids", "T", 1, "i32", "input")
        self.positions = self._buffer("positions", "T", 1, "i32", "input")
        self.out_rows = self._buffer("out_rows", "R", 1, "i32", "input")

    @contextmanager
    def unit(self, name: str) -> Iterator[None]:
        """Ops added inside belong to this unit, the smallest part the planner places."""
        self._units.append(name)
        self._unit = name
        yield
        self._unit = ""

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return name in self._tensors

    def embed(self, weight: str, width: int, scale: float = 1.0) -> Buffer:
        """Look up the rows of token ids: [T] -> [T, width]."""
        self._weight(weight, (width, self._n_vocab))
        return self._op("embed", (self.ids,), width, (weight,), p.Embed(scale))

    def rms_norm(self, x: Buffer, weight: str, eps: float, groups: int = 1) -> Buffer:
        """Normalize each of `groups` parts of a row; the weight is one part long."""
        self._weight(weight, (x.width // groups,))
        return self._op("rms_norm", (x,), x.width, (weight,), p.RmsNorm(eps, groups), rows=x.rows)

    def linear(self, x: Buffer, name: str, n_out: int, tensor: str | None = None) -> Buffer:
        """x @ weight.T with `NAME.weight` of dims (x.width, n_out), plus `NAME.bias` where the file has one."""
        weight = tensor or f"{name}.weight"
        self._weight(weight, (x.width, n_out))
        weights: tuple[str, ...] = (weight,)
        if self.has(f"{name}.bias"):
            self._weight(f"{name}.bias", (n_out,))
            weights += (f"{name}.bias",)
        return self._op("linear", (x,), n_out, weights, p.Linear(bias=len(weights) == 2), rows=x.rows)

    def rope(self, x: Buffer, rope: p.Rope, factors: str | None = None) -> Buffer:
        """Rotate the heads of x by the tokens' positions; `factors` names a tensor of n_rot/2 divisors."""
        weights: tuple[str, ...] = ()
        if factors is not None:
            self._weight(factors, (rope.n_rot // 2,))
            weights = (factors,)
        return self._op("rope", (x, self.positions), x.width, weights, replace(rope, factors=bool(weights)))

    def attention(self, q: Buffer, k: Buffer, v: Buffer, attention: p.Attention) -> Buffer:
        """Append k and v to the layer's state and attend: [T, n_head * head_dim_v]."""
        a = attention
        self._states[a.state] = KvState(a.state, self._unit, a.n_head_kv, a.head_dim_k, a.head_dim_v)
        return self._op("attention", (q, k, v, self.positions), a.n_head * a.head_dim_v, (), a)

    def add(self, a: Buffer, b: Buffer) -> Buffer:
        return self._op("add", (a, b), a.width, (), p.Add(), rows=a.rows)

    def glu(self, gate: Buffer, up: Buffer) -> Buffer:
        return self._op("glu", (gate, up), up.width, (), p.Glu(), rows=up.rows)

    def route(self, logits: Buffer, route: p.Route) -> tuple[Buffer, Buffer]:
        """Choose experts: logits [T, n_expert] -> ids i32 [T, n_used], weights f32 [T, n_used]."""
        ids = self._buffer(self._fresh("route_ids"), "T", route.n_used, "i32")
        weights = self._buffer(self._fresh("route_weights"), "T", route.n_used)
        self._append("route", (logits,), (ids, weights), (), route)
        return ids, weights

    def expert_linear(self, x: Buffer, ids: Buffer, weight: str, n_expert: int, n_in: int, n_out: int) -> Buffer:
        """Each slot's own expert: x [T, n_in] shared by all slots or [T, n_used * n_in] -> [T, n_used * n_out]."""
        self._weight(weight, (n_in, n_out, n_expert))
        shared = x.width == n_in
        return self._op("expert_linear", (x, ids), ids.width * n_out, (weight,), p.ExpertLinear(n_expert, ids.width, shared))

    def expert_sum(self, x: Buffer, weights: Buffer) -> Buffer:
        return self._op("expert_sum", (x, weights), x.width // weights.width, (), p.ExpertSum(weights.width))

    def take_rows(self, x: Buffer) -> Buffer:
        """Keep the rows whose logits are wanted: [T, n] -> [R, n]."""
        return self._op("take_rows", (x, self.out_rows), x.width, (), p.TakeRows(), rows="R")

    def output(self, logits: Buffer) -> None:
        """Declare the program's result, [R, n_vocab]."""
        self._buffers[logits.name] = replace(logits, role="output")

    def build(self) -> Program:
        """Close the program; refuses a file that holds tensors the architecture does not use, as its answers would be wrong."""
        unused = [n for n in self._tensors if n not in self._weights]
        if unused:
            listed = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            raise ProgramError(
                f"the file holds tensors this architecture does not use: {listed}; its answers would be wrong, so it is not run"
            )
        return Program(tuple(self._ops), self._buffers, self._weights, self._states, tuple(self._units), self._n_vocab)

    def _weight(self, name: str, dims: tuple[int, ...]) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ProgramError(f"tensor {name} is missing from the file, though its architecture needs it")
        if _squeeze(tensor.dims) != _squeeze(dims):
            have, want = " x ".join(map(str, tensor.dims)), " x ".join(map(str, dims))
            raise ProgramError(f"tensor {name} is {have} elements where the file's own metadata ask for {want}")
        self._weights[name] = Weight(name, tensor.format, dims, tensor.n_bytes)

    def _fresh(self, stem: str) -> str:
        return f"{self._unit}.{stem}.{len(self._ops)}"

    def _buffer(self, name: str, rows: Rows, width: int, dtype: Dtype = "f32", role: Role = "scratch") -> Buffer:
        self._buffers[name] = buffer = Buffer(name, rows, width, dtype, role)
        return buffer

    def _op(
        self, kind: str, inputs: tuple[Buffer, ...], width: int, weights: tuple[str, ...], params: p.Params, rows: Rows = "T"
    ) -> Buffer:
        out = self._buffer(self._fresh(kind), rows, width)
        self._append(kind, inputs, (out,), weights, params)
        return out

    def _append(
        self, kind: str, inputs: tuple[Buffer, ...], outputs: tuple[Buffer, ...], weights: tuple[str, ...], params: p.Params
    ) -> None:
        self._ops.append(Op(kind, tuple(b.name for b in inputs), tuple(b.name for b in outputs), weights, params, self._unit))


def _squeeze(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing ones: GGUF writers may or may not store them."""
    while len(dims) > 1 and dims[-1] == 1:
        dims = dims[:-1]
    return dims
