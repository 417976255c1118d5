"""Small programs planned over the CPU and any number of GPUs, and the executors that run them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ggrun.plan.device import Place
from ggrun.plan.planner import Plan, Request
from ggrun.plan.segments import lay_out
from ggrun.plan.streaming import streamable
from ggrun.program.program import Program
from ggrun.runtime.assembly import assemble
from ggrun.runtime.cpu.device import CpuDevice
from ggrun.runtime.cuda.device import CudaDevice
from ggrun.runtime.cuda.launch import Arch
from ggrun.runtime.executor import Batch, Executor
from ggrun.runtime.reference import ReferenceExecutor
from tests.cpu_programs import Sequences, Tensor

ARCH = Arch(90, 4, 227 << 10)
GIB = 1 << 30


def arch_here() -> Arch:
    """Of the real GPU in tests that run on one, else ARCH, which the stand-in driver shows."""
    if os.environ.get("GGRUN_TEST_GPU", "") in ("", "0"):
        return ARCH
    from ggrun.runtime.cuda.probe import usable_devices

    return usable_devices()[0].arch


@dataclass
class Running:
    """A plan, its devices by name, and the executor."""

    plan: Plan
    devices: Mapping[str, CpuDevice | CudaDevice]
    executor: Executor


def places(n_gpus: int = 1, arch: Arch | None = None) -> list[Place]:
    gpus = [Place(CudaDevice(f"CUDA{i}", arch or arch_here()), 8 * GIB, 8 * GIB) for i in range(n_gpus)]
    return [Place(CpuDevice(), 1 << 40, 1 << 40), *gpus]


def planned(program: Program, where: str | Mapping[str, str] = "CUDA0", n_gpus: int = 1, arch: Arch | None = None, **pins: object) -> Plan:
    """where: one device for all units, or unit -> device (absent: the CPU). pins: the planner's, and prompt_from: the tokens from which
    everything that can be is streamed to GPUs (0: nothing)."""
    prompt_from = int(pins.pop("prompt_from", 0))  # type: ignore[call-overload]
    request = Request(**{"n_ctx": 128, "n_ubatch": 32, "n_logits": 32, "n_threads": 1, **pins})  # type: ignore[arg-type]
    chosen = dict.fromkeys(program.units, where) if isinstance(where, str) else {unit: where.get(unit, "CPU") for unit in program.units}
    n_bytes = sum(weight.n_bytes for weight in program.weights.values())
    streamed = streamable(program, chosen) if prompt_from else {}
    file_weights = ("mapped file pages", n_bytes)
    return lay_out(program, places(n_gpus, arch), chosen, request, request.n_ctx, file_weights, (), (), streamed, prompt_from)


@contextmanager
def running(
    program: Program,
    tensors: Mapping[str, Tensor],
    where: str | Mapping[str, str] = "CUDA0",
    n_gpus: int = 1,
    arch: Arch | None = None,
    **pins: object,
) -> Iterator[Running]:
    plan = planned(program, where, n_gpus, arch, **pins)
    devices = {place.device.name: place.device for place in places(n_gpus, arch)}
    executor = assemble(plan, devices, tensors, 1, 1)
    try:
        yield Running(plan, devices, executor)  # type: ignore[arg-type]
    finally:
        executor.close()


def sequences(plan: Plan) -> Sequences:
    """Block tables for the plan's sequences."""
    return Sequences(plan.shape.n_seqs, plan.shape.n_ctx)


def reference(program: Program, tensors: Mapping[str, Tensor], batches: list[Batch], type_kv: str = "f16") -> list[np.ndarray]:
    """Logits of the NumPy executor for batches one after the other."""
    executor = ReferenceExecutor(program, tensors, 1 << 8, type_kv, type_kv)
    return [np.array(executor.run(batch)) for batch in batches]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Normalized mean square error of logits."""
    spread = want - want.mean(-1, keepdims=True)
    return float(((got.astype(np.float64) - want) ** 2).sum() / (spread.astype(np.float64) ** 2).sum())
