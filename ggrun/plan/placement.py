"""Which device each unit runs on, from what the user pinned and what the planner tries. Knows units and tensors, no memory.

-ngl counts as llama.cpp does: the output head is the first, then the last layers; 20 of 32 is the head and layers 13-31. The lookup of the
embedding stays on the CPU unless everything else is on GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ggrun.errors import GgrunError
from ggrun.plan.pins import Pins
from ggrun.program.program import Program

CPU = "CPU"
_LAYER = re.compile(r"layer\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Choice:
    """What one candidate of the planner chooses: layers as -ngl counts them, layers whose experts stay on the CPU, the embedding's lookup.

    shares: of the layers, by GPU; `weights`: what a unit counts when they are dealt out (absent: every layer and the head count one).
    stream: whether the CPU's weights may be streamed to GPUs for long prompts.
    """

    n_gpu_layers: int
    n_cpu_moe: int = 0
    embed: bool = False
    gpus: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """A program's units by their part: before the layers, each layer's, and after them (the head)."""

    before: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]

    @property
    def most(self) -> int:
        """What -ngl all counts."""
        return len(self.layers) + 1


def parts_of(program: Program) -> Parts:
    before: list[str] = []
    after: list[str] = []
    layers: dict[int, list[str]] = {}
    for unit in program.units:
        match = _LAYER.fullmatch(unit)
        if match:
            layers.setdefault(int(match[1]), []).append(unit)
        else:
            (after if layers else before).append(unit)
    return Parts(tuple(before), tuple(tuple(layers[i]) for i in sorted(layers)), tuple(after))


def has_experts(program: Program) -> bool:
    return any(unit.endswith(".experts") for unit in program.units)


def place(program: Program, pins: Pins, choice: Choice) -> dict[str, str]:
    """unit -> name of its device, in the program's order. Flags for parts of layers come after the layers, -ot last: it wins."""
    parts = parts_of(program)
    where = dict.fromkeys(program.units, CPU)
    n = min(choice.n_gpu_layers, parts.most) if choice.gpus else 0
    slots = [*parts.layers[parts.most - n :], parts.after] if n else []
    for slot, gpu in zip(slots, _deal(slots, choice)):
        where.update(dict.fromkeys(slot, gpu))
    if choice.embed and slots:
        where.update(dict.fromkeys(parts.before, where[slots[0][0]]))
    attention = {state.unit for state in program.states.values()}
    for index, layer in enumerate(parts.layers):
        for unit in layer:
            if (
                (unit.endswith(".experts") and index < choice.n_cpu_moe)
                or (unit.endswith(".ffn") and index < pins.n_cpu_ffn)
                or (unit in attention and not pins.kv_offload)
            ):
                where[unit] = CPU
    where.update(overridden(program, pins))
    return where


def _deal(slots: Sequence[Sequence[str]], choice: Choice) -> list[str]:
    """The GPU of each slot: a slot goes where its beginning falls when the shares are laid end to end, as llama.cpp deals."""
    if len(choice.gpus) == 1:
        return [choice.gpus[0]] * len(slots)
    shares = choice.shares or (1.0,) * len(choice.gpus)
    ends = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    sizes = [sum(choice.weights.get(unit, 0.0) for unit in slot) if choice.weights else 1.0 for slot in slots]
    total, at, dealt = sum(sizes) or 1.0, 0.0, []
    for n_bytes in sizes:
        middle = at + n_bytes / 2 if choice.weights else at
        dealt.append(next((gpu for gpu, end in zip(choice.gpus, ends) if middle / total < end), choice.gpus[-1]))
        at += n_bytes
    return dealt


def tensors_of(program: Program) -> dict[str, list[str]]:
    """unit -> the tensors that are its own; divisors of rotary frequencies belong to none, as all layers share them."""
    held: dict[str, list[str]] = {unit: [] for unit in program.units}
    for op in program.ops:
        if op.kind != "rope":
            held[op.unit] += [name for name in op.weights if name not in held[op.unit]]
    return held


def overridden(program: Program, pins: Pins) -> dict[str, str]:
    """unit -> device, of the units that hold a tensor an -ot pattern matches. The first pattern that matches a tensor counts for it."""
    result: dict[str, str] = {}
    for unit, names in tensors_of(program).items() if pins.overrides else ():
        wanted: dict[str, str] = {}
        for name in names:
            device = next((device for pattern, device in pins.overrides if re.search(pattern, name)), None)
            if device:
                wanted.setdefault(device, name)
        if len(wanted) > 1:
            (a, x), (b, y) = list(wanted.items())[:2]
            raise GgrunError(f"-ot puts {x} on {a} and {y} on {b}, but they are of one unit, {unit}, which runs in one place")
        result.update((unit, device) for device in wanted)
    return result


def override_notes(program: Program, pins: Pins) -> list[str]:
    """What a person should know of -ot: patterns that match nothing, and tensors that come along with the ones that were named."""
    notes = []
    moved = overridden(program, pins)
    held = tensors_of(program)
    for pattern, device in pins.overrides:
        matching = [name for names in held.values() for name in names if re.search(pattern, name)]
        if not matching:
            notes.append(f"-ot {pattern}={device}: no tensor of this model has such a name")
            continue
        units = [unit for unit in moved if any(re.search(pattern, name) for name in held[unit])]
        along = [n for unit in units for n in held[unit] if not any(re.search(other, n) for other, _ in pins.overrides)]
        if along:
            more = f" and {len(along) - 2} more" if len(along) > 2 else ""
            notes.append(f"-ot {pattern}={device}: units move as a whole, so {', '.join(along[:2])}{more} come along to {device}")
    return notes


def summary(program: Program, where: Mapping[str, str]) -> str:
    """Which layers are where, in words: "head and layers 13-31 on CUDA0, the rest on the CPU"."""
    parts = parts_of(program)
    said = []
    for device in dict.fromkeys(d for d in where.values() if d != CPU):
        whole = [i for i, layer in enumerate(parts.layers) if all(where[unit] == device for unit in layer)]
        some = [i for i, layer in enumerate(parts.layers) if i not in whole and any(where[unit] == device for unit in layer)]
        kinds = dict.fromkeys(unit.rpartition(".")[2] for i in some for unit in parts.layers[i] if where[unit] == device)
        named = ["the embedding"] * any(where[unit] == device for unit in parts.before)
        named += ["the head"] * any(where[unit] == device for unit in parts.after)
        named += [f"{'layers' if len(whole) > 1 else 'layer'} {ranges(whole)}"] if whole else []
        named += [f"{' and '.join(kinds)} of {'layers' if len(some) > 1 else 'layer'} {ranges(some)}"] if some else []
        said.append(f"{', '.join(named)} on {device}")
    if not said:
        return "everything on the CPU"
    rest = "; the rest on the CPU" if CPU in where.values() else ""
    return "; ".join(said) + rest


def ranges(numbers: Sequence[int]) -> str:
    """0,1,2,5 -> "0-2,5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
