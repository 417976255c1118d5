"""From a Program, a device and what the user pinned to a Plan: lowered segments, arena offsets, the ledger, and the context that fits.

Order: place, lower (fuse and choose kernels), lay out at T = n_ubatch and R = n_logits, ledger. Nothing is loaded or allocated here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggrun.errors import GgrunError
from ggrun.plan.arena import align, pack, spans
from ggrun.plan.cost import Prediction
from ggrun.plan.device import KV_BLOCK_TOKENS, Device, KvPlace, Segment, Shape, Stage, WeightCopy
from ggrun.plan.ledger import Ledger, Line, human
from ggrun.plan.placement import Choice
from ggrun.program.program import Program

DEFAULT_CTX_LIMIT = 32768  # -c 0 never asks for more than this
CTX_STEP = 256  # contexts found by search are multiples of this


class DoesNotFit(GgrunError):
    """The plan needs more memory than there is; `problem` has the numbers, the message also the nearest plan that fits.

    flags: the nearest plans as words of the command line; plan: what was refused.
    """

    def __init__(self, problem: str, nearest: str = "", flags: Sequence[Sequence[str]] = (), plan: Plan | None = None) -> None:
        super().__init__(f"{problem}; {nearest}" if nearest else problem)
        self.problem = problem
        self.flags = tuple(tuple(words) for words in flags)
        self.plan = plan


@dataclass(frozen=True, slots=True)
class Request:
    """What the user pinned. n_ctx: tokens of context (0: as much as is sensible).

    kv_tokens 0: n_ctx counts the tokens of all sequences together, and each gets an equal part. Else n_ctx is what one sequence may
    hold, and kv_tokens what all of them share; -1 with an n_ctx of 0: both are chosen, and alike.
    """

    n_ctx: int = 0
    n_seqs: int = 1
    kv_tokens: int = 0
    n_ubatch: int = 512
    n_logits: int = 0  # 0: one row a sequence
    n_threads: int = 1
    load_mode: str = "auto"
    copy_weights: bool = False  # when it fits, matrices move to private memory in the background
    type_k: str = "f16"  # of the KV cache: KV_TYPES of plan.device
    type_v: str = "f16"
    reuse: bool = True  # False: every buffer keeps its own bytes, for trace

    @property
    def n_tokens(self) -> int:
        """Of all sequences together, as pinned; 0: to be chosen."""
        return self.kv_tokens if self.kv_tokens > 0 else self.n_ctx

    def sized(self, n_tokens: int) -> Request:
        """The same with so many tokens of all sequences together."""
        if not self.kv_tokens:
            return replace(self, n_ctx=n_tokens)
        return replace(self, kv_tokens=n_tokens, n_ctx=min(self.n_ctx or n_tokens, n_tokens))

    def holding(self, n_ctx: int) -> int:
        """Tokens of all sequences together with which one may hold n_ctx."""
        return n_ctx if self.kv_tokens else n_ctx * self.n_seqs

    @property
    def context_words(self) -> list[str]:
        """The flags for it."""
        context = ["-c", str(self.n_ctx)] if self.n_ctx else []
        return [*context, "--kv-tokens", str(self.kv_tokens)] if self.kv_tokens > 0 else context


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device of a plan: all of it, what the plan may take, and what it leaves free when something is chosen."""

    device: str
    what: str  # in words, e.g. a card's name
    total_bytes: int
    limit_bytes: int
    margin_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Where everything runs and what it takes; the stages are the order in which segments run. `n_ctx` of the shape is per sequence."""

    program: Program
    shape: Shape
    segments: tuple[Segment, ...]
    ledger: Ledger
    available_bytes: int
    load_mode: str
    notes: tuple[str, ...]
    stages: tuple[Stage, ...] = ()
    prompt_stages: tuple[Stage, ...] = ()  # of batches of prompt_from tokens or more, where weights are streamed for them
    prompt_from: int = 0
    streamed: Mapping[str, str] = field(default_factory=dict)  # unit on the CPU -> GPU that computes it in those batches
    rooms: tuple[Room, ...] = ()  # of every device that could be used
    where: Mapping[str, str] = field(default_factory=dict)  # unit -> device; of a plan on the CPU alone none
    choice: Choice | None = None
    prediction: Prediction | None = None

    @property
    def devices(self) -> tuple[Room, ...]:
        """The rooms; of a plan made for the CPU alone, its memory."""
        return self.rooms or (Room("CPU", "memory", self.available_bytes, self.available_bytes),)


def make_plan(
    program: Program, device: Device, request: Request, n_ctx_train: int, weights_bytes: Mapping[str, int], available: int
) -> Plan:
    """Plan a whole program on one device.

    weights_bytes: ledger text -> bytes of weights in that form (mapped file, private copy ...). available: bytes free now.
    Raises DoesNotFit when a pinned context, or the smallest one, takes more than `available`.
    """
    if request.n_ctx < 0:
        raise GgrunError(f"a context of {request.n_ctx} tokens makes no sense; -c takes a positive number, or 0 to choose")
    weights = sum(weights_bytes.values())
    mapped = request.load_mode == "mmap"
    if weights > available and not mapped:
        raise DoesNotFit(
            f"the weights take {human(weights)} and {human(available)} of memory is available; "
            "--load-mode mmap runs them from the disk, slowly, or take a smaller quantization"
        )
    if weights > available:  # pages come and go; only the rest must stay resident
        budget, weights_note = available, paging_note(weights, available)
    else:
        budget, weights_note = available - weights, ""
    notes = [weights_note] if weights_note else []

    def build(n_ctx: int) -> Plan:
        return _lay_out(program, device, request, n_ctx, weights_bytes, available, tuple(notes))

    def need(plan: Plan) -> int:
        return plan.ledger.total() - weights

    if request.n_tokens:
        plan = build(request.n_tokens)
        if need(plan) > budget:
            best = _largest(build, need, budget, request.n_tokens)
            words = request.sized(best).context_words
            nearest = f"the largest context that fits is {best} ({' '.join(words)})" if best else "not even the smallest context fits"
            raise DoesNotFit(
                f"a context of {request.n_tokens} tokens takes {human(need(plan) + weights)} in all, of which weights {human(weights)}, "
                f"KV {human(plan.ledger.total(purpose='kv'))}; {human(available)} is available",
                nearest,
                [words] if best else [],
                plan,
            )
        return plan
    wanted = request.holding(min(n_ctx_train, DEFAULT_CTX_LIMIT))
    budget = budget - available // 4
    plan = build(wanted)
    if need(plan) <= budget:
        reason = "the trained context" if n_ctx_train <= DEFAULT_CTX_LIMIT else f"of {n_ctx_train} trained"
        notes.append(f"context: {plan.shape.n_ctx} tokens ({reason}; -c sets it)")
        return build(wanted)
    best = _largest(build, need, budget, wanted)
    if not best:
        raise DoesNotFit(
            f"weights {human(weights)} and the smallest context do not leave a quarter of the {human(available)} available free; "
            f"-c {CTX_STEP} tries it all the same"
        )
    n_ctx = shape_of(request, best).n_ctx
    notes.append(f"context: {n_ctx} tokens, what leaves a quarter of the {human(available)} available free (-c sets it)")
    return build(best)


def paging_note(weights: int, available: int) -> str:
    return (
        f"the weights ({human(weights)}) do not fit the {human(available)} of available memory: every token reads at least "
        f"{human(weights - available)} from the disk again; at 2 GiB/s that is {(weights - available) / (2 << 30):.1f} s a token"
    )


def _largest(build, need, budget: int, limit: int) -> int:  # type: ignore[no-untyped-def]
    """The largest multiple of CTX_STEP below limit whose plan fits the budget; 0 when none does."""
    low, high = 0, limit // CTX_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(build(middle * CTX_STEP)) <= budget else (low, middle - 1)
    return low * CTX_STEP


def _lay_out(
    program: Program,
    device: Device,
    request: Request,
    n_tokens: int,
    weights_bytes: Mapping[str, int],
    available: int,
    notes: tuple[str, ...],
) -> Plan:
    """The plan for so many tokens of all sequences together; memory is not judged here."""
    shape = shape_of(request, n_tokens)
    blocks = shape.n_kv_blocks
    lowered = device.lower(program, program.units, shape)
    offsets, scratch = pack(spans(program, lowered, {"T": shape.n_ubatch, "R": shape.n_logits}, request.reuse))
    thread = align(device.thread_bytes(lowered, program, shape))
    kv: dict[str, KvPlace] = {}
    kv_bytes = 0
    for state in program.states.values():
        kv[state.name] = KvPlace(kv_bytes, device.kv_block_bytes(state, shape))
        kv_bytes = align(kv_bytes + blocks * kv[state.name].block_bytes)
    lines = [
        Line(device.name, "kv", kv_words(shape), kv_bytes),
        Line(device.name, "scratch", f"activations of {shape.n_ubatch} tokens", scratch),
        Line(device.name, "scratch", f"private scratch of {shape.n_threads} threads", thread * shape.n_threads),
        Line(device.name, "process", "Python, kernels, vocabulary (measured)", device.process_bytes(program.n_vocab)),
    ]
    weights = [Line(device.name, "weights", what, n) for what, n in weights_bytes.items()]
    copy = None
    if request.copy_weights:
        copy = weight_copy(program, available)
        copied = copy_lines(program, copy, weights)
        if sum(line.n_bytes for line in copied + lines) <= available - available // 4:
            weights = copied
        else:
            copy = None
            notes += (NO_COPY.format(human(available)),)
    segment = Segment(device.name, program.units, lowered, offsets, scratch, thread, kv, kv_bytes, copy)
    stages = (Stage(0, 0, len(lowered.steps)),)
    return Plan(program, shape, (segment,), Ledger((*weights, *lines)), available, request.load_mode, notes, stages)


def shape_of(request: Request, n_tokens: int) -> Shape:
    """The sizes for n_tokens of all sequences together."""
    if request.kv_tokens:
        per_seq = max(1, min(request.n_ctx or n_tokens, n_tokens))
        blocks = 1 + -(-n_tokens // KV_BLOCK_TOKENS)
    else:
        per_seq = max(1, n_tokens // request.n_seqs)
        blocks = 1 + request.n_seqs * -(-per_seq // KV_BLOCK_TOKENS)
    n_logits = min(max(request.n_logits, request.n_seqs), request.n_ubatch)
    return Shape(per_seq, request.n_seqs, request.n_ubatch, n_logits, request.n_threads, blocks, request.type_k, request.type_v)


def kv_words(shape: Shape) -> str:
    kinds = shape.type_k if shape.type_k == shape.type_v else f"keys {shape.type_k}, values {shape.type_v}"
    if shape.shared:
        return f"KV cache, {shape.kv_tokens} tokens shared by {shape.n_seqs} sequences, {kinds}"
    return f"KV cache, {shape.n_ctx} tokens x {shape.n_seqs} sequences, {kinds}"


NO_COPY = "the weights stay on the file's pages: their copy on huge pages would not leave a quarter of the {} available free"


def weight_copy(program: Program, available: int, units: Container[str] | None = None) -> WeightCopy:
    """All matrices of the units (None: of all) one after the other; what is looked up row by row, and small vectors, are not worth it."""
    wanted = (op for op in program.ops if units is None or op.unit in units)
    matrices = dict.fromkeys(op.weights[0] for op in wanted if op.kind in ("linear", "expert_linear"))
    offsets: dict[str, int] = {}
    end = 0
    for name in matrices:
        offsets[name] = end
        end = align(end + program.weights[name].n_bytes)
    return WeightCopy(offsets, end, available // 8)


def copy_lines(program: Program, copy: WeightCopy, weights: list[Line]) -> list[Line]:
    """The weights' lines when the matrices of the first, the mapped ones, move to a copy."""
    mapped, *others = weights
    rest = mapped.n_bytes - sum(program.weights[name].n_bytes for name in copy.offsets)
    private = replace(mapped, what="matrices, private copy on huge pages, filled in the background", n_bytes=copy.n_bytes)
    return [replace(mapped, what=f"other {mapped.what}", n_bytes=rest), private, *others]
