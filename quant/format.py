"""The registry of weight formats: numeric id, name, block size and activation partner of each.

This is the only place that states these facts; readers, kernels, planner and documentation take them from
here. It knows nothing of what the bytes inside a block mean: the family modules (`legacy`, `k_quants`, `iq`) do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


class UnknownFormat(ValueError):
    """A tensor type that cannot be computed with: removed, not implemented here, or not a type at all."""


@dataclass(frozen=True, slots=True)
class Format:
    """One weight format: `block_elements` consecutive numbers of a row stored in `block_bytes` bytes.

    `id` is GGML's type number as GGUF stores it. `activation` names what the other factor of a matrix
    product is turned into: "f32" (left alone), "q8_0" (blocks of 32) or "q8_k" (blocks of 256).
    """

    id: int
    name: str
    block_elements: int
    block_bytes: int
    activation: str | None

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements` numbers. ValueError when that is not a whole number of blocks."""
        n_blocks, rest = divmod(n_elements, self.block_elements)
        if rest or n_elements < 0:
            raise ValueError(f"a row of {n_elements} elements cannot be {self.name}: its blocks hold {self.block_elements}")
        return n_blocks * self.block_bytes

    def row_elements(self, n_bytes: int) -> int:
        """Numbers in a row of `n_bytes` bytes, the inverse of `row_bytes`. ValueError when blocks do not come out whole."""
        n_blocks, rest = divmod(n_bytes, self.block_bytes)
        if rest or n_bytes < 0:
            raise ValueError(f"a row of {n_bytes} bytes cannot be {self.name}: its blocks take {self.block_bytes} bytes")
        return n_blocks * self.block_elements

    @property
    def bits_per_weight(self) -> float:
        """Storage cost of one number, scales included."""
        return 8 * self.block_bytes / self.block_elements


class KnownType(NamedTuple):
    """What is known of any GGML type, readable here or not."""

    name: str
    block_elements: int
    block_bytes: int


# id, name, elements and bytes of a block as GGML defines them, activation partner (None: not computed with here).
_TYPES: tuple[tuple[int, str, int, int, str | None], ...] = (
    (0, "F32", 1, 4, "f32"),
    (1, "F16", 1, 2, "f32"),
    (2, "Q4_0", 32, 18, "q8_0"),
    (3, "Q4_1", 32, 20, "q8_0"),
    (6, "Q5_0", 32, 22, "q8_0"),
    (7, "Q5_1", 32, 24, "q8_0"),
    (8, "Q8_0", 32, 34, "q8_0"),
    (9, "Q8_1", 32, 36, None),
    (10, "Q2_K", 256, 84, "q8_k"),
    (11, "Q3_K", 256, 110, "q8_k"),
    (12, "Q4_K", 256, 144, "q8_k"),
    (13, "Q5_K", 256, 176, "q8_k"),
    (14, "Q6_K", 256, 210, "q8_k"),
    (15, "Q8_K", 256, 292, None),
    (16, "IQ2_XXS", 256, 66, None),
    (17, "IQ2_XS", 256, 74, None),
    (18, "IQ3_XXS", 256, 98, None),
    (19, "IQ1_S", 256, 50, None),
    (20, "IQ4_NL", 32, 18, "q8_0"),
    (21, "IQ3_S", 256, 110, None),
    (22, "IQ2_S", 256, 82, None),
    (23, "IQ4_XS", 256, 136, "q8_k"),
    (24, "I8", 1, 1, None),
    (25, "I16", 1, 2, None),
    (26, "I32", 1, 4, None),
    (27, "I64", 1, 8, None),
    (28, "F64", 1, 8, None),
    (29, "IQ1_M", 256, 56, None),
    (30, "BF16", 1, 2, "f32"),
    (34, "TQ1_0", 256, 54, None),
    (35, "TQ2_0", 256, 66, None),
    (39, "MXFP4", 32, 17, None),
    (40, "NVFP4", 64, 36, None),
    (41, "Q1_0", 128, 18, None),
)

# Numbers that GGML once gave out and took back; named so that an old file is refused with a reason.
_REMOVED: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)

KNOWN_TYPES: Mapping[int, KnownType] = MappingProxyType({row[0]: KnownType(*row[1:4]) for row in _TYPES})
"""Every current GGML type by id: enough to check a tensor's extent and to name it."""

FORMATS: Mapping[int, Format] = MappingProxyType({row[0]: Format(*row) for row in _TYPES if row[4] is not None})
"""The weight formats that can be computed with, by id."""

_BY_NAME: Mapping[str, Format] = MappingProxyType({fmt.name: fmt for fmt in FORMATS.values()})


def format_by_id(type_id: int) -> Format:
    """The format with GGML's number `type_id`. UnknownFormat names the number and, where it has one, the type's name."""
    fmt = FORMATS.get(type_id)
    if fmt is not None:
        return fmt
    if type_id in KNOWN_TYPES:
        raise UnknownFormat(f"type {type_id} ({KNOWN_TYPES[type_id].name}) is not supported; supported: {', '.join(_BY_NAME)}")
    if type_id in _REMOVED:
        raise UnknownFormat(f"type {type_id} ({_REMOVED[type_id]}) was removed from GGML: get a newer conversion of the model")
    raise UnknownFormat(f"type {type_id} is not a GGML type this version knows")


def format_by_name(name: str) -> Format:
    """The format called `name` ("Q4_K", any case). UnknownFormat when there is none that can be computed with."""
    fmt = _BY_NAME.get(name.upper())
    if fmt is not None:
        return fmt
    known = {type_.name: type_id for type_id, type_ in KNOWN_TYPES.items()}
    if name.upper() in known:
        return format_by_id(known[name.upper()])
    raise UnknownFormat(f"'{name}' is not a format; supported: {', '.join(_BY_NAME)}")
