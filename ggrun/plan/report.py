"""A plan as JSON: what `ggrun plan --json` prints and GET /plan answers. All sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ggrun.plan.describe import token_bytes, unit_rows
from ggrun.plan.device import Stage
from ggrun.plan.planner import Plan
from ggrun.plan.whatif import Alternative


def report(plan: Plan, model: str, bandwidth: float = 0.0, others: Sequence[Alternative] = ()) -> dict[str, Any]:
    """A plan that fits. bandwidth: bytes of memory a second, as just measured (0: not measured, and nothing is said of it)."""
    alone = all(segment.device == "CPU" for segment in plan.segments)
    predicted = plan.prediction
    per_token = token_bytes(plan)
    measured = {
        "read_bandwidth": bandwidth,
        "tokens_per_second_at_most": bandwidth / per_token if alone or predicted is None else predicted.answer,
    }
    return {
        "model": model,
        "fits": True,
        "n_ctx": plan.shape.n_ctx,
        "n_parallel": plan.shape.n_seqs,
        "kv_tokens": plan.shape.kv_tokens,
        "n_ubatch": plan.shape.n_ubatch,
        "n_threads": plan.shape.n_threads,
        "n_gpu_layers": plan.choice.n_gpu_layers if plan.choice else 0,
        "n_cpu_moe": plan.choice.n_cpu_moe if plan.choice else 0,
        "load_mode": plan.load_mode,
        "available_bytes": plan.available_bytes,
        "total_bytes": plan.ledger.total(),
        "bytes_per_token": per_token,
        **(measured if bandwidth else {}),
        "prediction": asdict(predicted) if predicted else None,
        **_memory(plan),
        "units": [asdict(row) for row in unit_rows(plan)],
        "stages": _stages(plan, plan.stages),
        "op_offload": {"from_tokens": plan.prompt_from, "units": dict(plan.streamed), "stages": _stages(plan, plan.prompt_stages)},
        "what_if": [asdict(row) for row in others],
        "notes": list(plan.notes),
    }


def refusal(plan: Plan, model: str, problem: str, commands: Sequence[str]) -> dict[str, Any]:
    """A plan that does not fit: why, and the commands of the nearest ones that do."""
    return {"model": model, "fits": False, "problem": problem, "nearest": list(commands), **_memory(plan)}


def _memory(plan: Plan) -> dict[str, Any]:
    return {
        "devices": [asdict(room) | {"used_bytes": plan.ledger.total(room.device)} for room in plan.devices],
        "ledger": [asdict(line) for line in plan.ledger.lines],
    }


def _stages(plan: Plan, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    return [
        {
            "device": plan.segments[stage.segment].device,
            "steps": [stage.first, stage.last],
            "takes": [{"buffer": take.buffer, "from": plan.segments[take.source].device} for take in stage.takes],
        }
        for stage in stages
    ]
