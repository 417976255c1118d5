"""Long prompts on a GPU with the CPU's weights: which units' matrices are streamed to which GPU, and where they go there. Judges nothing.

A unit with attention keeps its keys and values where they are. Small vectors (norms) are no stream: they stay on the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ggrun.plan.arena import align
from ggrun.plan.device import Segment, Stage, Step, Stream
from ggrun.plan.placement import CPU, parts_of, ranges
from ggrun.program.program import Program

HALVES = 2  # of the arena: one is filled while the other is multiplied with


def streamable(program: Program, where: Mapping[str, str]) -> dict[str, str]:
    """unit -> GPU: the layers' units on the CPU that have no state and matrices of their own. The GPU is that of the layer's other units,
    or the plan's first."""
    gpus = list(dict.fromkeys(device for device in where.values() if device != CPU))
    attention = {state.unit for state in program.states.values()}
    readers: dict[str, set[str]] = {}
    for op in program.ops:
        for name in op.weights:
            readers.setdefault(name, set()).add(op.unit)
    multiplied = matrices(program)
    found = {}
    for layer in parts_of(program).layers if gpus else ():
        gpu = next((where[unit] for unit in layer if where[unit] != CPU), gpus[0])
        for unit in layer:
            names = multiplied[unit]
            if where[unit] == CPU and unit not in attention and names and all(readers[name] == {unit} for name in names):
                found[unit] = gpu
    return found


def matrices(program: Program) -> dict[str, list[str]]:
    """unit -> its weights that are multiplied with, in the order of use."""
    found: dict[str, list[str]] = {unit: [] for unit in program.units}
    for op in program.ops:
        if op.kind in ("linear", "expert_linear") and op.weights[0] not in found[op.unit]:
            found[op.unit].append(op.weights[0])
    return found


def streams_of(program: Program, streamed: Sequence[str], to: int) -> tuple[tuple[Stream, ...], int]:
    """A device's streams for these units, in the order of use, and the bytes of a half."""
    streams: list[Stream] = []
    half, multiplied = 0, matrices(program)
    for index, unit in enumerate(streamed):
        offsets: dict[str, int] = {}
        end = 0
        for name in multiplied[unit]:
            offsets[name] = end
            end = align(end + program.weights[name].n_bytes, to)
        streams.append(Stream(unit, index % HALVES, offsets))
        half = max(half, end)
    return tuple(streams), half


def split_stages(stages: Sequence[Stage], segments: Sequence[Segment]) -> tuple[Stage, ...]:
    """Stages cut before and after the steps that multiply with a stream, so that nothing else waits for it or holds it."""
    result: list[Stage] = []
    for stage in stages:
        segment = segments[stage.segment]
        needs = {name: index for index, stream in enumerate(segment.streams) for name in stream.weights}
        runs = _runs(segment.steps, stage, needs)
        result += (Stage(stage.segment, first, last, () if i else stage.takes, index) for i, (first, last, index) in enumerate(runs))
    return tuple(result)


def _runs(steps: Sequence[Step], stage: Stage, needs: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """(first, last, stream or -1): from the first to the last step that needs a stream, and what is between."""
    used: dict[int, list[int]] = {}
    for at in range(stage.first, stage.last):
        for name in steps[at].weights:
            if name in needs:
                used.setdefault(needs[name], []).append(at)
    runs, at = [], stage.first
    for index, among in sorted(used.items(), key=lambda item: item[1]):
        assert among[0] >= at, "streams are used one after the other"
        runs += [(at, among[0], -1)] * (among[0] > at) + [(among[0], among[-1] + 1, index)]
        at = among[-1] + 1
    return runs + [(at, stage.last, -1)] * (stage.last > at)


def words(program: Program, streamed: Mapping[str, str], prompt_from: int) -> str:
    """What a person should know: "prompts of 64 tokens or more: the ffn of layers 0-12 runs on CUDA0, weights streamed"."""
    said = []
    for gpu in dict.fromkeys(streamed.values()):
        kinds: dict[str, list[int]] = {}
        for index, layer in enumerate(parts_of(program).layers):
            for unit in layer:
                if streamed.get(unit) == gpu:
                    kinds.setdefault(unit.rpartition(".")[2], []).append(index)
        for kind, indices in kinds.items():
            layers = f"{'layers' if len(indices) > 1 else 'layer'} {ranges(indices)}"
            said.append(f"the {kind} of {layers} {'run' if kind.endswith('s') else 'runs'} on {gpu}")
    return f"prompts of {prompt_from} tokens or more: {', '.join(said)}, weights streamed"
