"""Seconds a batch takes, from bytes, multiplications and a machine's speeds: by this candidates are compared and speeds predicted.

A unit takes the longer of reading its weights and multiplying with them, then attention's the same with keys and values, and a fixed
time for every op. A stage takes a start, and what crosses between devices its bytes and a latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggrun.plan.device import Place
from ggrun.plan.machine import GUESSED_COPY, Machine, Speeds, gpu_speeds
from ggrun.plan.streaming import matrices
from ggrun.program import params as p
from ggrun.program.program import Op, Program

KV_BITS = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}  # of a cached number, its part of a scale included
TILE_TOKENS = 16  # tokens of a prompt that read a key together
PROMPT = 512  # tokens of the prompt a prediction is about
LEAST_STREAMED = 16  # tokens for which weights are ever streamed: fewer replay graphs on a GPU, which have none


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What one unit reads and multiplies. flops: by activation, of one token. kv_bytes, attention: of one token for each one before it."""

    token_bytes: float  # of weights, for one token
    all_bytes: float  # of weights, when the batch has tokens for every expert
    flops: Mapping[str, float]
    kv_bytes: float
    attention: float
    n_steps: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens a second: a prompt of 512 tokens; an answer at an empty and at a full context."""

    prompt: float
    answer: float
    answer_full: float
    measured: bool  # False: some speeds are guesses

    @property
    def seconds(self) -> float:
        """Of a prompt of 512 tokens and an answer of 128 behind an eighth of the context: by this candidates are compared."""
        return PROMPT / self.prompt + 128 * (0.875 / self.answer + 0.125 / self.answer_full)


def unit_costs(program: Program, type_k: str, type_v: str) -> dict[str, UnitCost]:
    costs = {}
    by_unit: dict[str, list[Op]] = {unit: [] for unit in program.units}
    for op in program.ops:
        by_unit[op.unit].append(op)
    for unit, ops in by_unit.items():
        token = everything = kv = attention = 0.0
        flops: dict[str, float] = {}
        for op in ops:
            for name in op.weights:
                weight = program.weights[name]
                share, used = 1.0, 1.0
                if isinstance(op.params, p.ExpertLinear):
                    share = op.params.n_used / op.params.n_expert
                elif op.kind == "embed":
                    share = used = 1 / weight.n_rows
                token += weight.n_bytes * share
                everything += weight.n_bytes * used
                if op.kind in ("linear", "expert_linear") and len(weight.dims) > 1:
                    activation = weight.format.activation or "f32"
                    flops[activation] = flops.get(activation, 0.0) + 2 * weight.dims[0] * weight.n_rows * share
            if isinstance(op.params, p.Attention):
                a = op.params
                kv += a.n_head_kv * (a.head_dim_k * KV_BITS[type_k] + a.head_dim_v * KV_BITS[type_v]) / 8
                attention += 2 * a.n_head * (a.head_dim_k + a.head_dim_v)
        costs[unit] = UnitCost(token, everything, flops, kv, attention, len(ops))
    return costs


class Cost:
    """Predicts for placements of one program on one machine."""

    def __init__(self, program: Program, places: Sequence[Place], machine: Machine, type_k: str, type_v: str, n_ubatch: int) -> None:
        self._program = program
        self._units = unit_costs(program, type_k, type_v)
        self._n_ubatch = n_ubatch
        self._copy = machine.cpu.copy or GUESSED_COPY
        self._matrix_bytes = {unit: sum(program.weights[name].n_bytes for name in names) for unit, names in matrices(program).items()}
        self._speeds: dict[str, Speeds] = {}
        for place in places:
            gpu = place.device.kind != "cpu"
            self._speeds[place.device.name] = (
                gpu_speeds(machine, place.gpu, place.compute_capability, place.total_bytes) if gpu else machine.cpu
            )
        self._width = 4 * max((program.buffers[op.outputs[0]].width for op in program.ops if op.kind == "embed"), default=0)

    def predict(self, where: Mapping[str, str], n_ctx: int, streamed: Mapping[str, str] | None = None, prompt_from: int = 0) -> Prediction:
        """For a placement (unit -> device) and the tokens of one sequence's context. streamed, prompt_from: see `segments.lay_out`."""
        n = min(PROMPT, n_ctx)
        used = {where[unit] for unit in self._units}
        measured = all(self._speeds[name].measured for name in used)
        chunks = [min(self._n_ubatch, n - at) for at in range(0, n, self._n_ubatch)]
        prompt = 0.0
        for i, size in enumerate(chunks):
            depth = i * self._n_ubatch + size / 2
            long = streamed and size >= prompt_from
            prompt += self.streaming(where, streamed or {}, size, depth) if long else self.seconds(where, size, depth)
        answer, full = self.seconds(where, 1, 1), self.seconds(where, 1, n_ctx)
        return Prediction(n / prompt, 1 / answer, 1 / full, measured)

    def seconds(self, where: Mapping[str, str], n_tokens: int, depth: float) -> float:
        """Of one batch of n_tokens of one sequence, the middle one of which has `depth` tokens before it."""
        total, before = 0.0, ""
        for unit, cost in self._units.items():
            device = where[unit]
            total += self._unit(cost, self._speeds[device], n_tokens if unit != "head" else 1, depth)
            if device != before:
                total += self._speeds[device].start
                total += self._cross(before, device, n_tokens * self._width) if before else 0.0
            before = device
        return total + self._cross(before, "CPU", 4 * self._program.n_vocab if n_tokens == 1 else 0)

    def streaming(self, where: Mapping[str, str], streamed: Mapping[str, str], n_tokens: int, depth: float) -> float:
        """Of one batch for which the weights of units on the CPU come to GPUs (unit -> GPU).

        They come beside everything else, through one thread of the CPU for each GPU, so that the longer of both counts, and nothing hides
        the first of them.
        """
        coming = dict.fromkeys(streamed.values(), 0.0)
        largest = 0.0
        for unit, gpu in streamed.items():
            speeds = self._speeds[gpu]
            seconds = self._matrix_bytes[unit] / min(self._copy, speeds.to_device or self._copy) + speeds.latency
            coming[gpu] += seconds
            largest = max(largest, seconds)
        return max(self.seconds({**where, **streamed}, n_tokens, depth), *coming.values()) + largest

    def prompt_from(self, where: Mapping[str, str], streamed: Mapping[str, str]) -> int:
        """The least tokens of a batch for which streaming is faster than the CPU; 0: of none."""

        def faster(n_tokens: int) -> bool:
            return self.streaming(where, streamed, n_tokens, n_tokens / 2) < self.seconds(where, n_tokens, n_tokens / 2)

        low, high = LEAST_STREAMED, self._n_ubatch
        if not streamed or high < low or not faster(high):
            return 0
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if faster(middle) else (middle + 1, high)
        return low

    def _unit(self, cost: UnitCost, speeds: Speeds, n_tokens: int, depth: float) -> float:
        read = min(cost.all_bytes, cost.token_bytes * n_tokens) / speeds.read
        multiply = sum(flops * n_tokens / speeds.flops[kind] for kind, flops in cost.flops.items())
        kv = cost.kv_bytes * depth * -(-n_tokens // TILE_TOKENS) / speeds.read
        attend = cost.attention * depth * n_tokens / speeds.attention
        return max(read, multiply) + max(kv, attend) + cost.n_steps * speeds.step

    def _cross(self, source: str, target: str, n_bytes: float) -> float:
        """Through the host's memory."""
        if source == target:
            return 0.0
        seconds = 0.0
        for name, out in ((source, True), (target, False)):
            speeds = self._speeds[name]
            link = speeds.from_device if out else speeds.to_device
            if link:
                seconds += n_bytes / link + speeds.latency
        return seconds
