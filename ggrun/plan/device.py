"""What the planner asks of a device, as pure data: how it lowers a program to steps and what these take. Imports no runtime.

Each runtime implements `Device` in a module that imports neither Numba nor PyCUDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ggrun.errors import GgrunError
from ggrun.program.params import Params
from ggrun.program.program import KvState, Program

KV_BLOCK_TOKENS = 32  # tokens of one KV block, which sequences with the same prefix share
KV_TYPES = ("f16", "q8_0", "q4_0")


class MissingKernels(GgrunError):
    """Some (op, format) pairs of the model have no kernel on the device; lists all of them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes a plan is laid out for; offsets never depend on the actual number of tokens of a batch."""

    n_ctx: int  # tokens of one sequence
    n_seqs: int  # parallel sequences (-np)
    n_ubatch: int  # T: tokens of a micro-batch (-ub)
    n_logits: int  # R: rows whose logits a batch may ask for
    n_threads: int  # team size on the CPU
    n_kv_blocks: int  # blocks of KV_BLOCK_TOKENS tokens, block 0 is the null block
    type_k: str = "f16"  # what cached keys and values are kept as, one of KV_TYPES
    type_v: str = "f16"

    @property
    def kv_tokens(self) -> int:
        """Tokens that all sequences hold together."""
        return (self.n_kv_blocks - 1) * KV_BLOCK_TOKENS

    @property
    def shared(self) -> bool:
        """Whether not all sequences can be at full length at the same time."""
        return self.n_kv_blocks - 1 < self.n_seqs * -(-self.n_ctx // KV_BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call of a lowered segment: kernel name, buffers in and out (program buffers or work areas), weights, params, unit."""

    kernel: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    params: Params | None
    unit: str


@dataclass(frozen=True, slots=True)
class Lowered:
    """A device's own steps for some units, and the work areas (name -> bytes at T = n_ubatch, R = n_logits) they pass between them."""

    steps: tuple[Step, ...]
    work: Mapping[str, int]


class Device(Protocol):
    """Pure description of a place that can run units."""

    @property
    def name(self) -> str:
        """What the ledger and `ggrun plan` call it, e.g. "CPU"."""
        ...

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """ "cpu" reads weights where the file is mapped; to a "cuda" device they are uploaded."""
        ...

    @property
    def alignment(self) -> int:
        """Bytes; every buffer, weight and KV arena on the device starts at a multiple."""
        ...

    def lower(self, program: Program, units: Sequence[str], shape: Shape) -> Lowered:
        """Fuse and choose kernels for the units, in the program's order; raises MissingKernels for all that is missing at once.

        A buffer that an op of any other unit reads is written under the program's name, and one that another unit wrote is read so:
        it may cross to another device. A step's unit is its first op's, and its ops are of units that follow one another.
        """
        ...

    @property
    def piece_bytes(self) -> int:
        """Of each of the two pieces of pinned memory that weights streamed to long prompts pass through; 0: nothing streams to it."""
        ...

    def thread_bytes(self, lowered: Lowered, program: Program, shape: Shape) -> int:
        """Private scratch of one thread (or stream), in bytes."""
        ...

    def kv_block_bytes(self, state: KvState, shape: Shape) -> int:
        """Bytes of one block of KV_BLOCK_TOKENS tokens of a layer's attention state. GgrunError when its types do not fit the heads."""
        ...

    def process_bytes(self, n_vocab: int) -> int:
        """Memory taken beside the arenas with a vocabulary of n_vocab tokens, measured: the process's own, or the driver's on the GPU."""
        ...

    def host_bytes(self, lowered: Lowered, program: Program, shape: Shape, crossing_bytes: int) -> Mapping[str, int]:
        """Host memory that its executor pins beside the arenas: what it is for -> bytes. The CPU pins nothing.

        crossing_bytes: the most that crosses to or from the device before one stage.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A device and its memory: all of it, and what is free now. gpu: the card's own name."""

    device: Device
    total_bytes: int
    free_bytes: int
    gpu: str = ""
    compute_capability: int = 0  # 86 is 8.6


@dataclass(frozen=True, slots=True)
class KvPlace:
    """Where a layer's KV arena starts within its segment's KV memory, and the bytes of one block."""

    offset: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class WeightCopy:
    """Weights that move to private memory after loading: their offsets in it, in the order of use, and its size.

    Filling it stops when less than `least_available` bytes of the machine's memory are available.
    """

    offsets: Mapping[str, int]
    n_bytes: int
    least_available: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Matrices of a CPU's unit that come to a device anew for each long prompt: their offsets in the half of the arena they go to."""

    unit: str
    half: int
    weights: Mapping[str, int]


@dataclass(frozen=True)
class Segment:
    """All that one device runs, in program order: its units, steps, and the byte offset of every buffer and work area in its scratch arena.

    weights: offsets of the tensors that are uploaded to the device's weight arena of weight_bytes; empty where they stay in the file.
    host: what Device.host_bytes asked for. prompt: the steps of long prompts, which follow the others and share their arenas; `streams`
    are the weights that come for them, in the order of use, each to one of the halves of half_bytes that follow the scratch.
    """

    device: str
    units: tuple[str, ...]
    lowered: Lowered
    offsets: Mapping[str, int]
    scratch_bytes: int
    thread_bytes: int
    kv: Mapping[str, KvPlace]
    kv_bytes: int
    copy: WeightCopy | None = None
    weights: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    host: Mapping[str, int] = field(default_factory=dict)
    prompt: Lowered = field(default_factory=lambda: Lowered((), {}))
    streams: tuple[Stream, ...] = ()
    half_bytes: int = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """Of every batch, then of long prompts: what stages count."""
        return self.lowered.steps + self.prompt.steps

    @property
    def stream_bytes(self) -> int:
        """Of both halves, or of the one that is needed."""
        return min(2, len(self.streams)) * self.half_bytes

    @property
    def arena_bytes(self) -> int:
        """Of a GPU's one block: weights, KV, scratch, streamed weights, in that order."""
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes + self.stream_bytes


@dataclass(frozen=True, slots=True)
class Take:
    """A buffer that crosses a cut: `source` is the index of the segment that holds it."""

    buffer: str
    source: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps first..last-1 of a segment, run without a break, after the buffers in `takes` have moved to it from other segments.

    stream: which of the segment's streams they multiply with; -1: none.
    """

    segment: int
    first: int
    last: int
    takes: tuple[Take, ...] = ()
    stream: int = -1


def missing(device: str, pairs: Iterable[tuple[str, str]]) -> MissingKernels:
    """The error for (op kind, format) pairs a device cannot compute."""
    listed = ", ".join(f"{kind} with {fmt} weights" if fmt else kind for kind, fmt in sorted(set(pairs)))
    return MissingKernels(f"{device} has no kernel for: {listed}; re-quantize the model to a supported format or run it elsewhere")
