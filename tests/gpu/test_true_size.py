"""The 6 GB case at true size: planned, and reserved by the executors that would run it, on a stand-in card of 6 GiB.

Files are holes in the disk with true headers, and untouched memory costs nothing. Everything goes as it goes for a user, until the moment
when all memory is reserved and the first weight would be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ggrun.engine import gpus, places
from ggrun.engine.loading import Options, Planned, load, plan_model
from ggrun.gguf import GgufFile
from ggrun.plan.pins import read_pins
from ggrun.plan.planner import DoesNotFit
from ggrun.runtime.cpu import executor as cpu_executor
from ggrun.runtime.cpu.memory import Memory
from ggrun.runtime.cuda.device import CONTEXT_BYTES, OWN_BYTES
from ggrun.runtime.cuda.driver import devices
from ggrun.runtime.cuda.memory import OutOfDeviceMemory
from ggrun.runtime.cuda.probe import Context
from tests.conftest import EMBEDDED
from tests.plan_machines import GIB, sparse_file

CARD, RAM = 6 * GIB, 16 * GIB
ON_GPU = ("weights", "kv", "scratch", "stream")


@dataclass
class Reserved:
    """What was there when all memory was reserved and no weight read."""

    used: int  # of the card, by the driver's count
    free: int  # of the card, as the driver tells a program
    pinned: int
    cpu: list[int]  # blocks of the CPU's executor
    others: int = 0  # of the card, taken by other tests before


class Enough(Exception):
    """All memory is reserved."""


class NoFilling:
    """Pages stay untouched."""

    def __init__(self, *_: object) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def card(driver: Any) -> Any:
    """A card of 6 GiB whose driver takes for a context what plans guess."""
    driver.set(memory=CARD, capability=86, context_bytes=CONTEXT_BYTES)
    gpus.found.cache_clear()
    return driver


def options(words: Sequence[str]) -> Options:
    """The flags that a refusal prints."""
    flags = dict(zip(words[::2], words[1::2], strict=True))
    kinds = {name: flags.pop(flag) for flag, name in (("-ctk", "type_k"), ("-ctv", "type_v")) if flag in flags}
    made = Options(n_ctx=int(flags.pop("-c")), n_threads=2, placement=read_pins(n_gpu_layers=flags.pop("-ngl")), **kinds)
    assert not flags
    return made


def planned(path: Path, wanted: Options) -> Planned:
    return plan_model(path, wanted, (places.cpu(RAM), *places.gpus()))


def reserved(made: Planned, wanted: Options, driver: Any, monkeypatch: pytest.MonkeyPatch) -> Reserved:
    """Load until weights would be read; all that was reserved is free again afterwards."""
    seen: list[Reserved] = []
    blocks: list[int] = []
    take = Memory.__init__

    def taken(self: Memory, n_bytes: int, *rest: Any) -> None:
        take(self, n_bytes, *rest)
        blocks.append(n_bytes)

    def stop(*_: object) -> None:
        counters, context = driver.counters(), Context(devices()[0])
        seen.append(Reserved(counters["used"][0], context.memory()[0], counters["pinned"], list(blocks)))
        context.close()
        raise Enough

    before = driver.counters()
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "__init__", taken)
        patched.setattr(cpu_executor, "Filling", NoFilling)
        patched.setattr(GgufFile, "load", stop)
        with pytest.raises(Enough):
            load(made, wanted, None)
    after = driver.counters()
    assert (after["used"][0], after["pinned"]) == (sum(before["used"][:1]), before["pinned"])
    assert after["bytes_h2d"] == 0
    others = sum(before["used"][:1])
    return replace(seen[0], used=seen[0].used - others, pinned=seen[0].pinned - before["pinned"], others=others)


def check(made: Planned, found: Reserved) -> None:
    """What was reserved is what the ledger lists, to the byte, and so is what is left."""
    ledger, (room,) = made.plan.ledger, (room for room in made.plan.rooms if room.device == "CUDA0")
    assert found.used == sum(ledger.total("CUDA0", purpose) for purpose in ON_GPU)
    assert found.pinned == ledger.total("CPU", "staging")
    copied = sum(segment.copy.n_bytes for segment in made.plan.segments if segment.copy)
    assert sum(found.cpu) == ledger.total("CPU", "kv") + ledger.total("CPU", "scratch") + copied
    assert room.total_bytes == room.limit_bytes + found.others == CARD
    kernels = OWN_BYTES - CONTEXT_BYTES  # the driver's share that comes with kernels, which are not loaded yet
    assert found.free == room.limit_bytes - ledger.total("CUDA0") + kernels
    assert found.free >= kernels


def test_eight_billion_parameters_and_32k_tokens(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-3.1-8B Q4_K_M, -ngl 20 -c 32768."""
    wanted = options(("-ngl", "20", "-c", "32768"))
    made = planned(sparse_file("llama-3.1-8b", tmp_path / "8b.gguf"), wanted)
    with made.file:
        check(made, reserved(made, wanted, card, monkeypatch))
        ledger = made.plan.ledger
        assert 2.5 * GIB < ledger.total("CUDA0", "weights") < 2.8 * GIB
        assert ledger.total("CUDA0", "kv") == 19 * (1 + 32768 // 32) * 32 * 2 * 8 * 128 * 2
        assert ledger.total("CUDA0") <= CARD


def test_seven_billion_with_four_times_the_cache_are_refused_and_what_is_advised_is_had(
    card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama-2-7B has no grouped heads: its KV cache takes four times as much. The flags that the refusal prints work, every one."""
    path = sparse_file("llama-2-7b", tmp_path / "7b.gguf")
    with pytest.raises(DoesNotFit, match=r"-ngl 20 -c 32768 takes 12\.\d+ GiB on CUDA0 \(weights .*, KV 9\.51 GiB") as refused:
        planned(path, options(("-ngl", "20", "-c", "32768")))
    assert len(refused.value.flags) == 3
    for words in refused.value.flags:
        wanted = options(words)
        made = planned(path, wanted)
        with made.file:
            check(made, reserved(made, wanted, card, monkeypatch))


def test_a_card_that_lost_memory_since_the_plan(card: Any, tmp_path: Path) -> None:
    """Out of memory is a sentence before anything is read, and nothing stays behind."""
    wanted = options(("-ngl", "20", "-c", "32768"))
    made = planned(sparse_file("llama-3.1-8b", tmp_path / "8b.gguf"), wanted)
    before = card.counters()
    card.set(memory=5 * GIB)
    problem = r"CUDA0: the plan needs 5\.\d+ GiB and the driver refuses it with 4\.\d+ GiB of 5\.00 GiB free"
    with made.file, pytest.raises(OutOfDeviceMemory, match=problem):
        load(made, wanted, None)
    after = card.counters()
    assert [after[what] for what in ("used", "pinned", "bytes_h2d")] == [before["used"], before["pinned"], 0]


@pytest.mark.parametrize("layers", ["1", "3", "all"])
def test_loaded_to_the_end_nothing_more_is_taken(driver: Any, layers: str) -> None:
    """The whole of loading and some tokens, with a model that is small enough to be computed here."""
    wanted = Options(n_ctx=256, n_ubatch=8, n_threads=1, placement=read_pins(n_gpu_layers=layers))
    before = driver.counters()
    made, executor = load(plan_model(EMBEDDED, wanted), wanted, None)
    with made.file:
        now, ledger = driver.counters(), made.plan.ledger
        assert now["used"][0] - sum(before["used"][:1]) == sum(ledger.total("CUDA0", purpose) for purpose in ON_GPU)
        uploaded = sum(
            made.program.weights[name].n_bytes for segment in made.plan.segments if segment.device == "CUDA0" for name in segment.weights
        )
        assert now["bytes_h2d"] >= uploaded
        executor.close()
    assert driver.counters()["used"][0] == sum(before["used"][:1])
