"""Models at true size without their weights, and machines without their GPUs: what plans are tested with."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ggrun.gguf import GgufWriter
from ggrun.models import ModelSpec, build_program
from ggrun.plan.device import KV_BLOCK_TOKENS, Lowered, Place, Shape, Step
from ggrun.plan.machine import Machine, guessed_cpu
from ggrun.plan.pins import read_pins
from ggrun.plan.planner import Plan, Request
from ggrun.plan.solve import Task, solve
from ggrun.program.program import KvState, Program
from ggrun.runtime.cpu.device import CpuDevice
from quant.format import format_by_name
from tests.conftest import REPO

GIB, MIB = 1 << 30, 1 << 20


def _make_model() -> Any:
    spec = importlib.util.spec_from_file_location("make_model", REPO / "scripts" / "make_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_model"] = module
    spec.loader.exec_module(module)
    return module


make_model = _make_model()
LLAMA_3 = make_model.SHAPES["llama-3.1-8b"]
SHAPES = {
    "llama-3.1-8b": (LLAMA_3, 128256),
    "llama-2-7b": (
        replace(LLAMA_3, label="7B", n_head_kv=32, n_ff=11008, n_ctx=4096, rope_base=1e4, rope_factor=0.0),
        32000,
    ),
    "llama-3.2-1b": (make_model.SHAPES["llama-3.2-1b"], 128256),
}


@cache
def model(name: str, mix: str = "q4_k_m") -> tuple[ModelSpec, Program]:
    """A published model's program, from names, shapes and formats alone."""
    shape, n_vocab = SHAPES[name]
    tensors = {}

    def add(name: str, dims: tuple[int, ...], fmt: Any) -> None:
        tensors[name] = SimpleNamespace(name=name, dims=dims, format=fmt, n_bytes=fmt.row_bytes(math.prod(dims)))

    f32 = format_by_name("F32")
    if shape.rope_factor:
        add("rope_freqs.weight", (shape.head_dim // 2,), f32)
    for stem, layer, dims, deviation in make_model.tensors(shape, shape.n_layers, n_vocab):
        fmt = make_model.matrix_format(mix, stem.rpartition(".")[2], layer, shape.n_layers, shape.tied) if deviation else f32
        add(f"{stem}.weight", dims, fmt)
    metadata = {"general.architecture": shape.architecture, **make_model.hyperparameters(shape, shape.n_layers, n_vocab)}
    return build_program(metadata, tensors)


@cache
def mixture(n_layers: int = 8, n_expert: int = 8, n_embd: int = 1024, n_ff: int = 3584, tied: bool = False) -> tuple[ModelSpec, Program]:
    """A mixture of experts of Mixtral's kind, most of whose bytes are experts; without experts a dense model."""
    q4, f32, kv = format_by_name("Q4_K"), format_by_name("F32"), 256
    tensors = {}

    def add(name: str, *dims: int, fmt: Any = q4) -> None:
        tensors[name] = SimpleNamespace(name=name, dims=dims, format=fmt, n_bytes=fmt.row_bytes(math.prod(dims)))

    attention = {"attn_q": (n_embd, n_embd), "attn_k": (n_embd, kv), "attn_v": (n_embd, kv), "attn_output": (n_embd, n_embd)}
    ffn = {"ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}
    add("token_embd.weight", n_embd, 32000)
    for i in range(n_layers):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", n_embd, fmt=f32)
        for name, dims in attention.items():
            add(f"blk.{i}.{name}.weight", *dims)
        if n_expert:
            add(f"blk.{i}.ffn_gate_inp.weight", n_embd, n_expert, fmt=f32)
        for name, dims in ffn.items():
            add(*((f"blk.{i}.{name}_exps.weight", *dims, n_expert) if n_expert else (f"blk.{i}.{name}.weight", *dims)))
    add("output_norm.weight", n_embd, fmt=f32)
    if not tied:
        add("output.weight", n_embd, 32000)
    metadata = {
        "context_length": 32768,
        "embedding_length": n_embd,
        "block_count": n_layers,
        "feed_forward_length": n_ff,
        "attention.head_count": n_embd // 64,
        "attention.head_count_kv": kv // 64,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata |= {"expert_count": n_expert, "expert_used_count": 2} if n_expert else {}
    return build_program({"general.architecture": "llama", **{f"llama.{k}": v for k, v in metadata.items()}}, tensors)


def sparse_file(name: str, path: Path, mix: str = "q4_k_m") -> Path:
    """A GGUF file of a published model at true size, whose weights are a hole in the disk: it takes the room of its header."""
    shape, n_vocab = SHAPES[name]
    vocabulary = make_model.made_up_vocabulary(shape.specials)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        vocabulary[key] = vocabulary[key][:n_vocab]
    writer = GgufWriter(path)
    metadata = {"general.architecture": shape.architecture, **make_model.hyperparameters(shape, shape.n_layers, n_vocab), **vocabulary}
    for key, value in metadata.items():
        writer.add(key, value)
    n_bytes = 0
    for stem, layer, dims, deviation in make_model.tensors(shape, shape.n_layers, n_vocab):
        fmt = format_by_name("F32")
        if deviation:
            fmt = make_model.matrix_format(mix, stem.rpartition(".")[2], layer, shape.n_layers, shape.tied)
        writer.add_tensor(f"{stem}.weight", dims, fmt, b"")
        n_bytes += -(-fmt.row_bytes(math.prod(dims)) // writer.alignment) * writer.alignment
    with path.open("wb") as out:
        writer._write_header(out)
        out.truncate(out.tell() + n_bytes)
    return path


class StandInGpu:
    """A GPU's description in which every op is one step; its own share of memory and of the host's are round figures."""

    kind: Literal["cpu", "cuda"] = "cuda"
    alignment = 256
    piece_bytes = 8 * MIB

    def __init__(self, name: str = "CUDA0", own_bytes: int = 300 * MIB) -> None:
        self.name = name
        self.own_bytes = own_bytes

    def lower(self, program: Program, units: Sequence[str], shape: Shape) -> Lowered:
        wanted = set(units)
        steps = tuple(
            Step(f"cuda_{op.kind}", op.inputs, op.outputs, op.weights, op.params, op.unit) for op in program.ops if op.unit in wanted
        )
        return Lowered(steps, {"batch": 16 * shape.n_ubatch, "attention": 4 * MIB})

    def thread_bytes(self, lowered: Lowered, program: Program, shape: Shape) -> int:
        return 0

    def kv_block_bytes(self, state: KvState, shape: Shape) -> int:
        sizes = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}
        parts = ((shape.type_k, state.head_dim_k), (shape.type_v, state.head_dim_v))
        return KV_BLOCK_TOKENS * state.n_head_kv * sum(dim * sizes[kind][0] // sizes[kind][1] for kind, dim in parts)

    def process_bytes(self, n_vocab: int) -> int:
        return self.own_bytes

    def host_bytes(self, lowered: Lowered, program: Program, shape: Shape, crossing_bytes: int) -> Mapping[str, int]:
        return {"uploads": 32 * MIB, "crossings": crossing_bytes, "logits": 4 * shape.n_logits * program.n_vocab}


def machine(vram: Sequence[float] = (6,), ram: float = 16, gpu: type = StandInGpu) -> tuple[Place, ...]:
    """A processor and GPUs with so many GiB, all of it free."""
    gpus = (Place(gpu(f"CUDA{i}"), round(n * GIB), round(n * GIB), "card", 86) for i, n in enumerate(vram))
    return (Place(CpuDevice(), round(ram * GIB), round(ram * GIB)), *gpus)


def task(model: tuple[ModelSpec, Program], places: tuple[Place, ...], n_ctx: int = 0, request: Request | None = None, **flags: Any) -> Task:
    spec, program = model
    weights = sum(w.n_bytes for w in program.weights.values())
    wanted = replace(request or Request(n_threads=8), n_ctx=n_ctx)
    return Task(
        program, places, read_pins(**flags), wanted, spec.n_ctx_train, ("weights, mapped file pages", weights), Machine(guessed_cpu(8))
    )


def planned(*rest: Any, **flags: Any) -> Plan:
    return solve(task(*rest, **flags))
