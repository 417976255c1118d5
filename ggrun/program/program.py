"""What a model computes: ops over buffers, grouped in units; symbolic in the number of tokens T and of logit rows R.

Knows tensor names, shapes and formats; knows nothing of devices, addresses, threads or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ggrun.errors import GgrunError
from ggrun.program.params import Params
from quant.format import Format

Rows = Literal["T", "R"]
Dtype = Literal["f32", "i32"]
Role = Literal["scratch", "input", "output"]


class ProgramError(GgrunError):
    """The model's tensors do not make the program its architecture asks for."""


class TensorLike(Protocol):
    """What a program needs to know of a weight: a GGUF tensor's extents, not its bytes."""

    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> Format: ...
    @property
    def n_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Buffer:
    """A matrix [rows, width]; rows is symbolic: T tokens of the batch or R wanted logit rows."""

    name: str
    rows: Rows
    width: int
    dtype: Dtype = "f32"
    role: Role = "scratch"

    @property
    def row_bytes(self) -> int:
        return 4 * self.width


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor the program multiplies with or looks up; dims in GGUF order (dims[0] is the row length)."""

    name: str
    format: Format
    dims: tuple[int, ...]
    n_bytes: int

    @property
    def n_rows(self) -> int:
        rows = 1
        for d in self.dims[1:]:
            rows *= d
        return rows


@dataclass(frozen=True, slots=True)
class KvState:
    """The attention state of one layer: per token `n_head_kv` keys and values."""

    name: str
    unit: str
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int


@dataclass(frozen=True, slots=True)
class Op:
    """One step: kind (a key of kinds.KINDS), buffer names in and out, weight names, typed params, the unit it belongs to."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    params: Params
    unit: str


@dataclass(frozen=True)
class Program:
    """Built once per model and never changed; passes make new ones."""

    ops: tuple[Op, ...]
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, Weight]
    states: Mapping[str, KvState]
    units: tuple[str, ...]
    n_vocab: int
