"""`ggrun tune` measures GPUs. On the stand-in driver the figures mean nothing, but every part of the measuring runs, and ends soon."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from ggrun.cli.app import main
from ggrun.engine import gpus, places, tuning
from ggrun.engine.loading import Options, plan_model
from ggrun.plan.machine import Machine, Speeds, guessed_cpu, guessed_gpu, read_machine, write_machine
from ggrun.plan.pins import ALL, Pins
from ggrun.runtime.cuda.device import CONTEXT_BYTES, OWN_BYTES
from ggrun.runtime.cuda.tuning import SMALL, SPARE_BYTES, measure
from ggrun.runtime.yardstick import KINDS
from tests.conftest import EMBEDDED

MIB = 1 << 20
CARD = "stand-in GPU"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where speeds are kept in this test; the processor is not measured."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_cpu", lambda *_: guessed_cpu(2))
    return places.machine_file()


def figures(speeds: Speeds) -> tuple[float, ...]:
    s = speeds
    return (s.read, *s.flops.values(), s.step, s.attention, s.to_device, s.from_device, s.latency, s.within)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_measured() -> None:
    """A real one too; small sizes."""
    (place, *_) = places.gpus()
    speeds = measure(place, sizes=SMALL)
    assert set(speeds.flops) == set(KINDS)
    assert all(0 < figure < float("inf") for figure in figures(speeds))
    assert speeds.start >= 0
    assert speeds.driver_bytes > speeds.code_bytes >= SPARE_BYTES
    assert speeds.measured


def test_what_the_driver_keeps_is_measured(driver: Any) -> None:
    """A context of 100 MiB and a MiB for each module; nothing stays behind."""
    driver.set(context_bytes=100 * MIB, module_bytes=MIB)
    (place,) = gpus.found()
    before = driver.counters()
    speeds = measure(place, sizes=SMALL)
    now = driver.counters()
    modules = now["modules"] - before["modules"]
    assert modules > 3
    assert speeds.code_bytes == modules * MIB + SPARE_BYTES
    assert speeds.driver_bytes == 100 * MIB + speeds.code_bytes
    assert (sum(now["used"]), now["pinned"]) == (sum(before["used"]), before["pinned"])
    gpus.found.cache_clear()
    assert gpus.found()[0].free_bytes == place.free_bytes


def test_on_a_machine_without_a_gpu_it_ends_soon(driver: Any, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The full sizes would take hours here. What was measured flows into plans: the driver's share, and that nothing is a guess."""
    write_machine(kept, Machine(guessed_cpu(2), {"a real card": guessed_gpu(86, 6 << 30)}))
    begin = perf_counter()
    with pytest.raises(SystemExit) as stopped:
        main(["tune"])
    assert stopped.value.code == 0
    assert perf_counter() - begin < 60
    out, _ = capsys.readouterr()
    for row in ("copies within its memory", "copies to it", "start of a stage", "driver's memory"):
        assert row in out
    gpu = read_machine(kept, 1).gpus
    assert set(gpu) == {CARD, "a real card"}
    assert gpu["a real card"] == guessed_gpu(86, 6 << 30)
    made = plan_model(EMBEDDED, Options(n_ctx=256, placement=Pins(n_gpu_layers=ALL)))
    with made.file:
        assert made.plan.ledger.total("CUDA0", "driver") == gpu[CARD].driver_bytes == 64 * MIB + SPARE_BYTES
        assert made.plan.prediction is not None
        line = json.loads(kept.read_text())["gpus"][CARD]
        assert line["measured"] == gpu[CARD].measured


def test_room_is_what_is_free_with_a_context_open_and_the_context(driver: Any, kept: Path) -> None:
    """However large the context is said to be, an arena gets what is free besides it, less the kernels' code."""
    driver.set(memory=6 << 30, context_bytes=300 * MIB)
    gpus.found.cache_clear()
    free = (6 << 30) - 300 * MIB - sum(driver.counters()["used"])
    rooms = []
    for own, code in ((0, 0), (500 * MIB, 40 * MIB), (200 * MIB, 20 * MIB), (450 * MIB, 0)):
        speeds = {"driver_bytes": own, "code_bytes": code}
        write_machine(kept, Machine(guessed_cpu(2), {CARD: Speeds(1e9, dict.fromkeys(KINDS, 1e9), 1e-6, 1e9, **speeds)}))
        (place,) = places.gpus()
        rooms.append(place.free_bytes - place.device.process_bytes(0))
    guess = OWN_BYTES - CONTEXT_BYTES
    assert rooms[2] == free - 20 * MIB
    assert rooms[1] <= free - 40 * MIB  # never more than the card has in all
    assert rooms[0] <= free - guess
    assert rooms[3] <= free - guess


def test_a_card_without_room_for_measuring_keeps_what_it_had(driver: Any, kept: Path) -> None:
    assert places.gpus()
    before = driver.counters()["used"]
    driver.set(memory=64 * MIB + 65536 + sum(before))
    machine, path, skipped = tuning.tune()
    assert path.exists()
    assert not machine.gpus
    assert len(skipped) == 1
    assert "refuses it with" in skipped[0]
    assert skipped[0].endswith("the speeds of CUDA0 stay as they were")
    assert driver.counters()["used"] == before
