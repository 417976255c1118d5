"""What a token costs, counted: bytes of weights, copies, kernels. For a tiny Q4_K_M model on the stand-in driver; for 8B from the plan."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ggrun.engine import places
from ggrun.models import build_program
from ggrun.plan.planner import Plan
from ggrun.plan.solve import solve
from ggrun.program.program import Program, Weight
from ggrun.runtime.cuda.bind import Binder
from ggrun.runtime.cuda.inputs import Counts
from ggrun.runtime.cuda.launch import Arch
from quant.format import format_by_name
from tests.conftest import REPO
from tests.cpu_programs import Weights
from tests.gpu.machines import running, sequences
from tests.plan_machines import GIB, LLAMA_3, make_model, model, task

IDS = np.random.default_rng(7).integers(0, 64, 64).astype(np.int32)


def q4_k_m(n_layers: int = 2, n_vocab: int = 64) -> tuple[Program, Weights]:
    """A tiny Llama in the mix of formats that published files have: Q4_K, and Q6_K where more bits pay."""
    shape = replace(LLAMA_3, n_layers=n_layers, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, rope_factor=0.0)
    weights = Weights()
    for stem, layer, dims, deviation in make_model.tensors(shape, n_layers, n_vocab):
        name = f"{stem}.weight"
        if deviation:
            fmt = make_model.matrix_format("q4_k_m", stem.rpartition(".")[2], layer, n_layers, shape.tied).name
            weights.random(name, dims, fmt, scale=deviation)
        else:
            weights.random(name, dims, mean=1.0, scale=0.1)
    metadata = {"general.architecture": shape.architecture, **make_model.hyperparameters(shape, n_layers, n_vocab)}
    return build_program(metadata, weights)[1], weights


def counted(driver: Any, program: Program, weights: Weights, n_tokens: int) -> dict[str, Any]:
    """Counters of a batch of tokens of one sequence, behind a first of five."""
    with running(program, weights, arch=Arch(86, 4, 99 << 10), n_logits=8) as r:
        s = sequences(r.plan)
        r.executor.run(s.batch([(0, 0, IDS[:5])], [4]))
        driver.reset(capability=86)
        r.executor.run(s.batch([(0, 5, IDS[5 : 5 + n_tokens])], [n_tokens - 1]))
        return dict(driver.counters())


def matrix_bytes(program: Program) -> int:
    """Every matrix once, and of the embedding nothing."""
    return sum(program.weights[name].n_bytes for op in program.ops if op.kind == "linear" for name in op.weights)


def without_formats(kernels: Counter[str] | dict[str, int]) -> Counter[str]:
    """Launches by the kernel's base."""
    found: Counter[str] = Counter()
    for name, n in kernels.items():
        found[name.partition("__")[0]] += n
    return found


LAYER = {"norm": 2, "gemv": 5, "rope_store": 1, "attention_decode": 1, "attention_combine": 1, "quantize": 2, "gated": 1}
AROUND = {"embed": 1, "norm": 1, "rope_table": 1, "add": 1, "take_rows": 1, "gemv": 1}


@pytest.mark.parametrize("n_tokens", [1, 4])
def test_each_weight_byte_is_read_once_and_one_copy_goes_each_way(driver: Any, n_tokens: int) -> None:
    driver.set(capability=86)
    program, weights = q4_k_m()
    assert {w.format.name for w in program.weights.values()} == {"Q4_K", "Q6_K", "F32"}
    counters = counted(driver, program, weights, n_tokens)
    assert counters["weight_bytes"] == matrix_bytes(program) + n_tokens * weights["token_embd.weight"].row_bytes
    assert (counters["copies_h2d"], counters["copies_d2h"], counters["copies_d2d"]) == (1, 1, 0)
    assert (counters["graph_launches"], counters["launch_calls"]) == (1, 0)
    assert counters["bytes_d2h"] == 4 * program.n_vocab
    assert counters["bytes_h2d"] < 1 << 10
    if n_tokens == 1:
        assert without_formats(counters["kernels"]) == Counter(AROUND) + Counter({name: 2 * n for name, n in LAYER.items()})


class Described:
    """A tensor of a file that is not there."""

    def __init__(self, weight: Weight) -> None:
        self.n_bytes = weight.n_bytes
        self.row_bytes = weight.format.row_bytes(weight.dims[0])

    def read(self, start: int, target: memoryview) -> None:
        target[:] = np.ones(len(target) // 4, np.float32).tobytes()

    def release(self) -> None: ...


def launches(plan: Plan, arch: Arch, counts: Counts) -> Counter[str]:
    """Kernels that a batch launches on the GPU, by their bases; nothing runs."""
    segment = next(segment for segment in plan.segments if segment.device == "CUDA0")
    tensors = {name: Described(weight) for name, weight in plan.program.weights.items()}
    binder = Binder(plan.program, segment, plan.shape, tensors, arch, 1 << 40)
    return without_formats(Counter(launch.kernel for launch in binder.launches(0, len(segment.lowered.steps), counts)))


def llama_8b(vram: int, n_ctx: int, layers: str) -> tuple[Plan, Arch]:
    where = places.described([vram], 32 * GIB, 86)
    return solve(task(model("llama-3.1-8b"), where, n_ctx, n_gpu_layers=layers)), where[1].device.arch  # type: ignore[attr-defined]


COLUMNS = {
    "a token, all layers": (24 * GIB, 8192, "all", Counts(1, 1)),
    "a token, `-ngl 20`": (6 * GIB, 32768, "20", Counts(1, 1)),
    "8 sequences": (24 * GIB, 8192, "all", Counts(8, 8)),
    "512 tokens of a prompt": (24 * GIB, 8192, "all", Counts(512, 1, 32)),
}


def table() -> list[list[str]]:
    """The table of docs/cuda-runtime.md."""
    columns = [launches(*llama_8b(*size), counts) for *size, counts in COLUMNS.values()]
    names = sorted({name for column in columns for name in column}, key=lambda name: (-columns[0][name], name))
    rows = [[f"`{name}`", *(str(column[name] or "") for column in columns)] for name in names]
    return [["kernels", *COLUMNS], *rows, ["together", *(str(sum(column.values())) for column in columns)]]


def test_the_documents_table_of_launches_is_current() -> None:
    text = (REPO / "docs" / "cuda-runtime.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| (kernels \| a token|`\w+` \| *\d* *\||together \|)", line)]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found == table(), "it should be:\n" + "\n".join("| " + " | ".join(row) + " |" for row in table())


def test_a_token_of_llama_8b_launches_thirteen_kernels_a_layer() -> None:
    plan, arch = llama_8b(24 * GIB, 8192, "all")
    assert sum(LAYER.values()) == 13
    assert launches(plan, arch, Counts(1, 1)) == Counter(AROUND) + Counter({name: 32 * n for name, n in LAYER.items()})
    assert plan.program.weights["token_embd.weight"].format == format_by_name("Q4_K")
