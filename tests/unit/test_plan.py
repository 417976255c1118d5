"""The planner: what fits, what is refused and with which numbers, and that the ledger adds up."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS, Lowered, Step
from ggrun.plan.ledger import human
from ggrun.plan.memory import available_bytes, has_huge_pages
from ggrun.plan.planner import DEFAULT_CTX_LIMIT, DoesNotFit, Plan, Request, make_plan
from ggrun.program.program import Buffer, KvState, Op, Program, Weight
from quant.format import format_by_name

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

    def kv_block_bytes(self, state: KvState, shape: object) -> int:
        return KV_BLOCK_TOKENS * 4096

    def process_bytes(self, n_vocab: int) -> int:
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


def copying(available: int, **pins: object) -> Plan:
    """A plan of 100 MiB of mapped weights; 80 MiB and a bit are two matrices, the head's being the embedding's, too."""
    weights = {"embedding": (1024, 20 * 1024), "matrix": (1024, 60 * 1024 + 1), "table": (1024, 10 * 1024), "norm": (1024,)}
    ops = [
        Op("embed", ("ids",), ("x",), ("embedding",), None, "layer.0.attn"),
        Op("linear", ("x",), ("x",), ("matrix", "norm"), None, "layer.0.attn"),
        Op("linear", ("x",), ("x",), ("matrix",), None, "layer.0.attn"),
        Op("embed", ("ids",), ("x",), ("table",), None, "layer.0.attn"),
        Op("linear", ("x",), ("y",), ("embedding",), None, "layer.0.attn"),
    ]
    q8_0 = format_by_name("Q8_0")
    program = replace(
        PROGRAM, ops=tuple(ops), weights={name: Weight(name, q8_0, dims, q8_0.row_bytes(math.prod(dims))) for name, dims in weights.items()}
    )
    request = Request(n_ctx=256, copy_weights=True, **pins)  # type: ignore[arg-type]
    return make_plan(program, Fake(), request, 4096, {"mapped": 100 * MIB}, available)  # type: ignore[arg-type]


def test_matrices_get_a_copy_and_the_rest_stays_mapped() -> None:
    p = copying(200 * MIB)
    copy = p.segments[0].copy
    assert copy is not None
    row = 1024 // 32 * 34
    assert copy.offsets == {"matrix": 0, "embedding": -(-row * (60 * 1024 + 1) // 64) * 64}
    mapped, private = (line for line in p.ledger.lines if line.purpose == "weights")
    assert private.n_bytes == copy.n_bytes == copy.offsets["embedding"] + 20 * 1024 * row
    assert mapped.n_bytes == 100 * MIB - row * (80 * 1024 + 1)
    assert copy.least_available == 25 * MIB


def test_a_copy_that_would_not_leave_a_quarter_free_is_not_made_and_said() -> None:
    need = copying(1000 * MIB).ledger.total()
    assert copying(need * 4 // 3 + 2).segments[0].copy is not None
    p = copying(need * 4 // 3 - 2)
    assert p.segments[0].copy is None
    assert [line.what for line in p.ledger.lines if line.purpose == "weights"] == ["mapped"]
    assert "stay on the file's pages" in p.notes[-1]


def test_huge_pages_are_there_unless_switched_off(tmp_path: Path) -> None:
    switch = tmp_path / "enabled"
    assert not has_huge_pages(switch)
    for text, there in (("always [madvise] never", True), ("[always] madvise never", True), ("always madvise [never]", False)):
        switch.write_text(text)
        assert has_huge_pages(switch) == there


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


def test_a_pool_is_shared_and_each_sequence_may_have_its_own_share_of_it() -> None:
    p = plan(Request(n_ctx=1000, kv_tokens=2500, n_seqs=4), 1000 * MIB)
    assert (p.shape.n_ctx, p.shape.n_kv_blocks, p.shape.kv_tokens, p.shape.shared) == (1000, 1 + 79, 2528, True)
    assert "2528 tokens shared by 4 sequences" in next(line.what for line in p.ledger.lines if line.purpose == "kv")
    one = plan(Request(n_ctx=4096, kv_tokens=4096, n_seqs=4), 1000 * MIB)
    apart = plan(Request(n_ctx=4096 * 4, n_seqs=4), 1000 * MIB)
    assert one.shape.n_ctx == apart.shape.n_ctx == 4096
    assert 4 * one.ledger.total(purpose="kv") - apart.ledger.total(purpose="kv") == 3 * KV_BLOCK_TOKENS * 4096  # of the null block
    assert not plan(Request(n_ctx=1000, kv_tokens=1000), 1000 * MIB).shape.shared


def test_a_pool_is_chosen_so_that_one_sequence_may_have_all_of_it() -> None:
    p = plan(Request(kv_tokens=-1, n_seqs=4), 1000 * MIB)
    assert (p.shape.n_ctx, p.shape.kv_tokens) == (4096, 4096)
    small = plan(Request(kv_tokens=-1, n_seqs=4), 200 * MIB, n_ctx_train=32768)
    assert small.shape.n_ctx == small.shape.kv_tokens < 32768
    assert f"context: {small.shape.n_ctx} tokens, what leaves a quarter" in small.notes[-1]


def test_a_pool_that_is_too_large_is_refused_with_the_largest_that_fits() -> None:
    with pytest.raises(DoesNotFit, match="--kv-tokens") as refused:
        plan(Request(n_ctx=8192, kv_tokens=100_000), 200 * MIB)
    ((_, n_ctx, flag, n_tokens),) = refused.value.flags
    assert (n_ctx, flag) == ("8192", "--kv-tokens")
    assert plan(Request(n_ctx=8192, kv_tokens=int(n_tokens)), 200 * MIB).ledger.total() <= 200 * MIB
