"""Moving weights to private memory: the same bits at any moment, every descriptor told, and giving up leaves things as they are."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from ggrun.errors import GgrunError
from ggrun.runtime.cpu import residency
from ggrun.runtime.cpu.executor import CpuExecutor
from tests.cpu_programs import Model, Sequences, Tensor, executor

MODELS = {"dense": Model("Q8_0"), "experts": Model("Q8_0", n_ff=64, n_expert=6), "f32": Model(bias=True)}
BATCH = Sequences(1, 64).batch([(0, 0, range(40))])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "PIECE_BYTES", 1000)
    monkeypatch.setattr(residency, "available_bytes", lambda: 1 << 60)


class Gate(Tensor):
    """A tensor that asks before each piece of it is read, and notes that its pages were released."""

    before: Callable[[Tensor], None]
    released: list[str]

    def read(self, start: int, target: memoryview) -> None:
        Gate.before(self)
        super().read(start, target)

    def release(self) -> None:
        Gate.released.append(self.name)


def gated(model: Model, before: Callable[[Tensor], None]) -> tuple:
    """The model's program and tensors, read through `before`; and the logits it computes without a copy."""
    program, tensors = model.build()
    with executor(program, tensors) as cpu:
        want = cpu.run(BATCH).copy()
    Gate.before, Gate.released = before, []
    for tensor in tensors.values():
        tensor.__class__ = Gate
    return program, tensors, want


def named(cpu: CpuExecutor, address: int) -> int:
    """How many words of the descriptors are this address."""
    return int(np.count_nonzero(cpu._steps == address))


@pytest.mark.parametrize("name", MODELS)
def test_bits_are_the_same_before_during_and_after(name: str) -> None:
    go, asked = threading.Semaphore(0), threading.Semaphore(0)

    def wait(tensor: Tensor) -> None:
        asked.release()
        assert go.acquire(timeout=60)

    program, tensors, want = gated(MODELS[name], wait)
    with executor(program, tensors, n_threads=2, copy_weights=True) as cpu:
        copied = list(cpu._segment.copy.offsets)
        used = {tensor: named(cpu, tensors[tensor].address) for tensor in tensors}
        assert set(copied) < set(tensors)
        while cpu._residency._thread.is_alive():
            if asked.acquire(timeout=0.01):
                np.testing.assert_array_equal(cpu.run(BATCH), want)
                go.release()
        cpu.settle()
        assert Gate.released == copied
        for tensor in copied:  # tied embeddings included
            place = cpu._residency._memory.address + cpu._segment.copy.offsets[tensor]
            assert (named(cpu, tensors[tensor].address), named(cpu, place)) == (0, used[tensor])
            tensors[tensor].raw[:] = 0  # whoever still read it would compute something else
        assert used["token_embd.weight"] == 2
        np.testing.assert_array_equal(cpu.run(BATCH), want)
        assert cpu.notes == []


def test_bits_are_the_same_while_weights_move_under_a_running_batch() -> None:
    program, tensors, want = gated(Model("Q8_0", n_layer=4), lambda tensor: time.sleep(1e-5))
    with executor(program, tensors, n_threads=2, copy_weights=True) as cpu:
        while cpu._residency._thread.is_alive():
            np.testing.assert_array_equal(cpu.run(BATCH), want)


def test_little_memory_stops_it_and_what_was_copied_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([1 << 60] * 20)
    monkeypatch.setattr(residency, "available_bytes", lambda: next(left, 5 << 20))
    program, tensors, want = gated(MODELS["dense"], lambda tensor: None)
    with executor(program, tensors, copy_weights=True) as cpu:
        cpu.settle()
        total = len(cpu._segment.copy.offsets)
        assert 0 < len(Gate.released) < total
        (note,) = cpu.notes
        assert note.startswith(f"{len(Gate.released)} of {total} matrices were copied to huge pages, the others stay mapped: only 5.00 MiB")
        np.testing.assert_array_equal(cpu.run(BATCH), want)


def test_a_file_that_cannot_be_read_stops_it() -> None:
    def fail(tensor: Tensor) -> None:
        if tensor.name == "1.k.weight":
            raise GgrunError("the disk is gone")

    program, tensors, want = gated(MODELS["dense"], fail)
    with executor(program, tensors, copy_weights=True) as cpu:
        cpu.settle()
        assert "1.k.weight" not in Gate.released
        assert cpu.notes[0].endswith("the others stay mapped: the disk is gone")
        np.testing.assert_array_equal(cpu.run(BATCH), want)


def test_closing_stops_it_at_the_next_piece() -> None:
    reading, asked = threading.Event(), []

    def slowly(tensor: Tensor) -> None:
        asked.append(tensor.name)
        reading.set()
        time.sleep(0.01)

    program, tensors, _ = gated(MODELS["dense"], slowly)
    with executor(program, tensors, copy_weights=True) as cpu:
        thread = cpu._residency._thread
        assert reading.wait(60)
        cpu.close()
        assert not thread.is_alive()
        assert cpu.allocated_bytes == 0
        assert (Gate.released, len(set(asked))) == ([], 1)
        cpu.settle()
        assert cpu.notes == []


def test_no_thread_is_left_when_it_is_done() -> None:
    program, tensors, _ = gated(MODELS["dense"], lambda tensor: None)
    with executor(program, tensors, copy_weights=True) as cpu:
        cpu.settle()
        assert not [thread for thread in threading.enumerate() if thread.name == "ggrun-weights"]
