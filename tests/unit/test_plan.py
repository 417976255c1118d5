"""The planner: what fits, what is refused and with which numbers, and that the ledger adds up."""

import re
from pathlib import Path

import pytest

from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Lowered, Step
from ggrun.plan.ledger import human
from ggrun.plan.memory import available_bytes
from ggrun.plan.planner import DEFAULT_CTX_LIMIT, DoesNotFit, Plan, Request, make_plan
from ggrun.program.program import Buffer, KvState, Program

MIB = 1 << 20
PROGRAM = Program(
    (),
    {"x": Buffer("x", "T", 1024), "y": Buffer("y", "R", 256, role="output")},
    {},
    {"kv.0": KvState("kv.0", "layer.0.attn", 8, 64, 64)},
    ("layer.0.attn",),
    256,
)


class Fake:
    """A device that takes 4 KiB a KV token, so that figures are easy to check."""

    name = "CPU"

    def lower(self, program: Program, units: object, shape: object) -> Lowered:
        return Lowered((Step("k", ("x",), ("y",), (), None, "layer.0.attn"),), {"w": 1000})

    def thread_bytes(self, lowered: Lowered, program: Program, shape: object) -> int:
        return 100

    def kv_block_bytes(self, state: KvState) -> int:
        return KV_BLOCK_TOKENS * 4096

    def reserve_bytes(self) -> int:
        return 10 * MIB


def plan(request: Request, available: int, weights: int = 100 * MIB, n_ctx_train: int = 4096) -> Plan:
    return make_plan(PROGRAM, Fake(), request, n_ctx_train, {"weights": weights}, available)  # type: ignore[arg-type]


def test_zero_takes_the_trained_context_and_says_so() -> None:
    p = plan(Request(), 1000 * MIB)
    assert p.shape.n_ctx == 4096
    assert "4096" in p.notes[-1]
    assert plan(Request(), 10000 * MIB, n_ctx_train=1 << 20).shape.n_ctx == DEFAULT_CTX_LIMIT


def test_zero_leaves_a_quarter_free() -> None:
    p = plan(Request(), 200 * MIB, n_ctx_train=32768)
    assert p.ledger.total() <= 150 * MIB
    assert p.ledger.total() > 145 * MIB  # and no more than that
    assert "quarter" in p.notes[-1]


def test_a_context_that_does_not_fit_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(DoesNotFit, match="largest context that fits") as error:
        plan(Request(n_ctx=100_000), 200 * MIB)
    best = int(re.search(r"-c (\d+)", str(error.value)).group(1))  # type: ignore[union-attr]
    assert plan(Request(n_ctx=best), 200 * MIB).ledger.total() <= 200 * MIB
    with pytest.raises(DoesNotFit):
        plan(Request(n_ctx=best + 256), 200 * MIB)


def test_weights_larger_than_memory_need_mmap_and_then_say_the_speed() -> None:
    with pytest.raises(DoesNotFit, match="--load-mode mmap"):
        plan(Request(), 200 * MIB, weights=300 * MIB)
    p = plan(Request(load_mode="mmap"), 200 * MIB, weights=300 * MIB)
    assert any("disk" in note for note in p.notes)


def test_parallel_sequences_share_the_context_asked_for() -> None:
    p = plan(Request(n_ctx=4096, n_seqs=4), 1000 * MIB)
    assert p.shape.n_ctx == 1024
    assert p.shape.n_kv_blocks == 1 + 4 * 32
    assert p.shape.n_logits == 4


def test_the_ledger_adds_up_to_the_segment() -> None:
    p = plan(Request(n_ctx=512, n_threads=3), 1000 * MIB)
    segment = p.segments[0]
    assert p.ledger.total(purpose="kv") == segment.kv_bytes == p.shape.n_kv_blocks * KV_BLOCK_TOKENS * 4096
    assert p.ledger.total(purpose="scratch") == segment.scratch_bytes + 3 * segment.thread_bytes
    assert p.ledger.total() == sum(line.n_bytes for line in p.ledger.lines)


def test_a_negative_context_is_a_sentence() -> None:
    with pytest.raises(GgrunError, match="-c takes"):
        plan(Request(n_ctx=-5), 1000 * MIB)


def test_a_control_group_limits_what_is_available(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, lambda: 500) == 500
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert available_bytes(tmp_path, lambda: 500) == 500
    (tmp_path / "memory.max").write_text("400\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 150\n")
    assert available_bytes(tmp_path, lambda: 500) == 250


@pytest.mark.parametrize(("n", "text"), [(640, "640 B"), (1536, "1.50 KiB"), (3 << 29, "1.50 GiB"), (5 * MIB, "5.00 MiB")])
def test_human(n: int, text: str) -> None:
    assert human(n) == text
