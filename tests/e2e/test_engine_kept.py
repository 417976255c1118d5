"""Keys and values that outlive their sequence: in host memory, on disk, in a slot's file. What is found there is, to the bit, what would be
computed; what is damaged, or another model's, is never used."""

import os
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.disk_thread import DiskThread
from ggrun.errors import GgrunError
from ggrun.plan.device import KV_BLOCK_TOKENS as N
from ggrun.plan.device import KV_TYPES
from ggrun.plan.memory import promised_bytes
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
RNG = np.random.default_rng(11)
PROMPT, OTHER, THIRD = ([int(i) for i in RNG.integers(3, 380, 150)] for _ in range(3))
FULL = len(PROMPT) // N * N


def answer(engine: Engine, prompt: list[int], n: int = 4) -> tuple[int, list[tuple[int | None, float]]]:
    """What was found, and the tokens with their log probabilities, which differ when any logit does."""
    generation = engine.submit(prompt, GREEDY, n_predict=n)
    events = [(event.id, event.logprob) for event in generation]
    return generation.timings.cache_n, events


def settled(engine: Engine) -> None:
    """Everything that is to be written to disk is."""
    prefixes = engine._loop._prefixes
    while engine._loop.call(lambda: bool(prefixes._wanted)):
        pass
    assert isinstance(prefixes._disk, DiskThread)
    prefixes._disk.flush()


@pytest.mark.parametrize("kind", KV_TYPES)
def test_blocks_that_left_the_pool_come_back_from_memory(kind: str) -> None:
    options = {"n_ctx": 160, "type_k": kind, "type_v": kind}
    with Engine.open(MODEL, **options) as engine:
        want = answer(engine, PROMPT)[1]
        answer(engine, OTHER)
        assert answer(engine, PROMPT)[0] == 0, "the pool is too small for both"
    with Engine.open(MODEL, cram_mib=16, **options) as engine:
        answer(engine, PROMPT)
        answer(engine, OTHER)
        found, got = answer(engine, PROMPT)
        assert got == want
        assert found == len(PROMPT) - 1, "all but the token whose logits are wanted"
        assert answer(engine, [*PROMPT[:70], *OTHER[:20]])[0] == 70, "a part of a block, too"


def test_memory_for_blocks_is_a_line_of_the_ledger_and_forgets_the_oldest() -> None:
    with Engine.open(MODEL, n_ctx=160, cram_mib=1) as engine:
        host = engine._loop._prefixes._host
        assert host is not None
        assert engine.plan.ledger.total(purpose="cache") == host.n_bytes <= 1 << 20
        assert host.n_blocks == (1 << 20) // host.block_bytes
        prompts = [[int(i) for i in RNG.integers(3, 380, 150)] for _ in range(host.n_blocks // 4 + 3)]
        wanted = [answer(engine, prompt)[1] for prompt in prompts]
        assert host.n_used == host.n_blocks
        assert answer(engine, prompts[0])[0] == 0
        assert answer(engine, prompts[-2]) == (len(PROMPT) - 1, wanted[-2])
    with Engine.open(MODEL, n_ctx=160, cram_mib=64) as engine:
        assert promised_bytes() == engine.plan.ledger.total(purpose="cache"), "nothing of it is filled, and it is taken all the same"
        answer(engine, PROMPT)
        answer(engine, OTHER)
        host = engine._loop._prefixes._host
        assert promised_bytes() == host.n_bytes - host.n_used * host.block_bytes < host.n_bytes
    assert promised_bytes() == host.n_bytes == 0
    with Engine.open(MODEL, n_ctx=160, cram_mib=900_000_000) as engine:
        assert any("-cram 900000000: " in note and "half of what the plan leaves free" in note for note in engine.notes)
        assert 0 < 2 * engine.plan.ledger.total(purpose="cache") <= engine.plan.available_bytes
    with Engine.open(MODEL, n_ctx=160, cram_mib=-1) as engine:
        free = engine.plan.available_bytes - engine.plan.ledger.total()
        assert 0 < engine.plan.ledger.total(purpose="cache") <= min(8192 << 20, free)


@pytest.mark.parametrize("kind", KV_TYPES)
def test_a_restart_finds_what_was_used_twice(tmp_path: Path, kind: str) -> None:
    options = {"n_ctx": 512, "type_k": kind, "type_v": kind, "disk_cache": tmp_path / "prefixes"}
    with Engine.open(MODEL, **options) as engine:
        want = answer(engine, PROMPT)[1]
        answer(engine, OTHER)
        settled(engine)
        assert not list(tmp_path.rglob("*.kv")), "once is not twice"
        answer(engine, [*PROMPT, 5])
        settled(engine)
        assert len(list(tmp_path.rglob("*.kv"))) == FULL // N
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    with Engine.open(MODEL, **options) as engine:
        assert answer(engine, PROMPT) == (FULL, want)
        assert answer(engine, OTHER)[0] == 0
    with Engine.open(MODEL, **{**options, "type_v": "f16" if kind != "f16" else "q8_0"}) as engine:
        assert answer(engine, PROMPT)[0] == 0, "other types, other bits"
    with Engine.open(MODEL, **{**options, "n_ubatch": 17, "n_parallel": 2, "n_threads": 1}) as engine:
        assert answer(engine, PROMPT) == (FULL, want)


def test_what_is_about_to_be_written_is_written_at_the_end(tmp_path: Path) -> None:
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path) as engine:
        answer(engine, PROMPT, 1)
        answer(engine, PROMPT, 1)
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path) as engine:
        assert answer(engine, PROMPT)[0] == FULL


def test_a_full_disk_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggrun.engine import disk_blocks

    def full(self, named, data) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_blocks.DiskBlocks, "write", full)
    told: list[str] = []
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path) as engine:
        engine.on_note(told.append)
        want = answer(engine, PROMPT)[1]
        for _ in range(3):
            assert answer(engine, PROMPT)[1] == want
        settled(engine)
        assert [note for note in engine.notes if "no more prompts are kept in" in note and "No space left on device" in note]
        assert told == engine.notes[-1:], "a server has said its notes already"


def test_a_block_that_cannot_be_opened_just_now_stays(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggrun.engine import disk_blocks

    def none_left(path, origin) -> None:
        raise OSError(24, "Too many open files")

    files = sorted(cached.rglob("*.kv"))
    with monkeypatch.context() as patched, Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        patched.setattr(disk_blocks, "Reader", none_left)
        assert answer(engine, PROMPT)[0] == 0
    assert sorted(cached.rglob("*.kv")) == files
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        assert answer(engine, PROMPT)[0] == FULL


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A folder with PROMPT's blocks."""
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path) as engine:
        answer(engine, PROMPT)
        answer(engine, PROMPT)
        settled(engine)
    return tmp_path


@pytest.mark.parametrize("at", [0, 9, 60, 0.3, 0.5, -17, -1])
def test_a_damaged_block_is_computed_again(cached: Path, at: float) -> None:
    with Engine.open(MODEL, n_ctx=512) as engine:
        want = answer(engine, PROMPT)[1]
    for path in cached.rglob("*.kv"):
        data = bytearray(path.read_bytes())
        data[int(at * len(data)) if isinstance(at, float) else at] ^= 1
        path.write_bytes(data)
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        assert answer(engine, PROMPT) == (0, want)
    assert len(list(cached.rglob("*.kv"))) < FULL // N, "the first that was read is gone"


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.999])
def test_a_block_cut_short_is_computed_again(cached: Path, keep: float) -> None:
    with Engine.open(MODEL, n_ctx=512) as engine:
        want = answer(engine, PROMPT)[1]
    middle = sorted(cached.rglob("*.kv"), key=lambda path: path.stat().st_mtime)[-2]
    data = middle.read_bytes()
    middle.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        found, got = answer(engine, PROMPT)
        assert got == want
        assert found < FULL


def changed(tmp_path: Path) -> Path:
    """The model with other weights in its first sampled page."""
    copy = tmp_path / "changed.gguf"
    shutil.copy(MODEL, copy)
    with Engine.open(MODEL, n_ctx=64) as engine:
        start = engine.file._parts[0][1].data_start
    data = bytearray(copy.read_bytes())
    data[start] ^= 1
    copy.write_bytes(data)
    return copy


def test_a_copy_of_the_model_shares_blocks_and_another_model_does_not(cached: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(MODEL, copy)
    with Engine.open(copy, n_ctx=512, disk_cache=cached) as engine:
        assert answer(engine, PROMPT)[0] == FULL
    with Engine.open(changed(tmp_path), n_ctx=512, disk_cache=cached) as engine:
        assert answer(engine, PROMPT)[0] == 0


def test_the_folder_keeps_its_size(tmp_path: Path) -> None:
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path, disk_cache_mib=1) as engine:
        for _ in range(30):
            prompt = [int(i) for i in RNG.integers(3, 380, 150)]
            answer(engine, prompt, 1)
            answer(engine, prompt, 1)
        settled(engine)
        sizes = [path.stat().st_size for path in tmp_path.rglob("*.kv")]
        assert 0 < sum(sizes) <= 1 << 20
        assert len(sizes) < 30 * (FULL // N)
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path, disk_cache_mib=1) as engine:
        assert answer(engine, prompt, 1)[0] == FULL, "the newest stays"


def test_the_folder_keeps_its_size_with_several_processes_writing(tmp_path: Path) -> None:
    from ggrun.engine.disk_blocks import DiskBlocks, Named
    from ggrun.engine.kv_file import Origin

    origin, most = Origin("a model", "00", "f16", 4096), 400_000
    writers = [DiskBlocks(tmp_path / "kept", origin, f"{i}", most) for i in range(3)]
    largest = 0
    for number in range(300):
        writers[number % 3].write(Named(number.to_bytes(16, "big"), (1,) * N), np.zeros(4096, np.uint8))
        largest = max(largest, sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*.kv")))
    assert most // 2 < largest < most * 5 // 4


def test_a_folder_that_cannot_be_used_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path / "file") as engine:
        assert any("prompts are not kept for the next start" in note for note in engine.notes)
        answer(engine, PROMPT)
    (tmp_path / "open").mkdir(mode=0o755)
    with Engine.open(MODEL, n_ctx=512, disk_cache=tmp_path / "open") as engine:
        assert any("open to other users" in note for note in engine.notes)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755, "it is not ours to close"
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with Engine.open(MODEL, n_ctx=512, disk_cache=link) as engine:
        assert any("not a folder of its own" in note for note in engine.notes)


def test_two_processes_share_a_folder(cached: Path) -> None:
    """Engines beside each other, whose files appear and vanish under the other's hands."""
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as one, Engine.open(MODEL, n_ctx=512, disk_cache=cached) as two:
        for path in sorted(cached.rglob("*.kv"))[:2]:
            path.unlink()
        assert answer(one, PROMPT)[1] == answer(two, PROMPT)[1]
        for engine in (one, two, one, two):  # the first time it notices what is gone
            answer(engine, PROMPT)
            settled(engine)
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        assert answer(engine, PROMPT)[0] == FULL


def test_cancelled_and_closed_while_blocks_are_read(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggrun.engine import disk_blocks

    started, go = threading.Event(), threading.Event()
    read = disk_blocks.DiskBlocks.read

    def slow(self, named, into) -> bool:
        started.set()
        go.wait(5)
        return read(self, named, into)

    monkeypatch.setattr(disk_blocks.DiskBlocks, "read", slow)
    with Engine.open(MODEL, n_ctx=512, disk_cache=cached) as engine:
        first = engine.submit(PROMPT, GREEDY, n_predict=4)
        assert started.wait(5)
        first.cancel()
        go.set()
        assert first.wait().finish_reason == "cancelled"
        started.clear()
        go.clear()
        second = engine.submit(PROMPT, GREEDY, n_predict=4)
        assert started.wait(5)
        threading.Timer(0.2, go.set).start()
    assert second.wait().finish_reason == "cancelled"


def test_a_prompt_sent_while_the_engine_closes_ends(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are on disk, whose thread has ended."""
    engine = Engine.open(MODEL, n_ctx=512, disk_cache=cached)
    loop, late = engine._loop, []
    close = loop._prefixes.close

    def closing() -> None:
        close()
        late.append(sequence_of(engine, PROMPT))

    monkeypatch.setattr(loop._prefixes, "close", closing)
    engine.close()
    assert late[0].wait().finish_reason == "cancelled"


def sequence_of(engine: Engine, prompt: list[int]):
    """Submit past the lock that closing holds."""
    engine._loop._send = engine._loop._inbox.put
    return engine.submit(prompt, GREEDY, n_predict=4)


# ---- slots


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list]:
    path = tmp_path / "slot.bin"
    with Engine.open(MODEL, n_ctx=512) as engine:
        answer(engine, PROMPT)
        n_tokens, n_bytes = engine.save_slot(0, path)
        assert n_tokens == len(PROMPT) + 3  # the last token was never computed
        assert n_bytes == path.stat().st_size
        want = answer(engine, [*PROMPT, 5])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["slot.bin"]
    return path, want[1]


@pytest.mark.parametrize("kind", KV_TYPES)
def test_a_slot_comes_back(tmp_path: Path, kind: str) -> None:
    options = {"n_ctx": 1024, "n_parallel": 2, "type_k": kind, "type_v": kind}
    with Engine.open(MODEL, **options) as engine:
        want = answer(engine, PROMPT)[1]
        saved = engine.save_slot(0, tmp_path / "a")
        assert engine.save_slot(1, tmp_path / "b")[0] == 0, "nobody was there"
    with Engine.open(MODEL, **options) as engine:
        assert engine.restore_slot(1, tmp_path / "a") == saved
        assert engine.save_slot(1, tmp_path / "c") == saved
        assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
        assert answer(engine, PROMPT) == (len(PROMPT) - 1, want)
        assert engine.restore_slot(0, tmp_path / "b")[0] == 0


def test_an_erased_slot_is_computed_again() -> None:
    with Engine.open(MODEL, n_ctx=512, cram_mib=4) as engine:
        answer(engine, PROMPT)
        answer(engine, [*PROMPT[:80], *OTHER[:40]])
        assert engine.erase_slot(0) > 0  # who was last; the 64 tokens that both share stay
        assert answer(engine, [*PROMPT[:80], *OTHER[:40]], 1)[0] == 80
        assert engine.erase_slot(0) > 0
        assert answer(engine, PROMPT)[0] == len(PROMPT) - 1
        engine.erase_slot(0)
        assert engine.status().kv_used == 0
        assert answer(engine, OTHER)[0] == 0


def test_slots_that_are_not_or_at_work(tmp_path: Path) -> None:
    with Engine.open(MODEL, n_ctx=512) as engine:
        for work in (engine.erase_slot, lambda n: engine.save_slot(n, tmp_path / "x"), lambda n: engine.restore_slot(n, tmp_path / "x")):
            for slot in (-1, 1):
                with pytest.raises(GgrunError, match=f"there is no slot {slot}"):
                    work(slot)
        with pytest.raises(GgrunError, match="cannot be restored from .*No such file"):
            engine.restore_slot(0, tmp_path / "x")
        with pytest.raises(GgrunError, match="cannot be saved to .*No such file"):
            engine.save_slot(0, tmp_path / "no folder" / "x")
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
            with pytest.raises(GgrunError, match="no file of keys and values that ggrun wrote"):
                engine.restore_slot(0, path)
        g = engine.submit(PROMPT, GREEDY, on_overflow="shift")
        next(iter(g))
        assert engine.save_slot(0, tmp_path / "running")[0] >= len(PROMPT) // N * N
        with pytest.raises(GgrunError, match="at work"):
            engine.erase_slot(0)
        with pytest.raises(GgrunError, match="at work"):
            engine.restore_slot(0, tmp_path / "running")
        g.cancel()
        g.wait()
        assert engine.status().kv_used == 0


def test_other_models_and_types_are_refused(saved: tuple[Path, list], tmp_path: Path) -> None:
    path, want = saved
    with Engine.open(changed(tmp_path), n_ctx=512) as engine, pytest.raises(GgrunError, match="saved with another model"):
        engine.restore_slot(0, path)
    other = "keys f16, values f16 and the model is open with keys q8_0, values f16"
    with Engine.open(MODEL, n_ctx=512, type_k="q8_0") as engine, pytest.raises(GgrunError, match=other):
        engine.restore_slot(0, path)
    with Engine.open(MODEL, n_ctx=96) as engine, pytest.raises(GgrunError, match="holds 153 tokens and the context 96"):
        engine.restore_slot(0, path)
    with Engine.open(MODEL, n_ctx=512) as engine:
        engine.restore_slot(0, path)
        assert answer(engine, [*PROMPT, 5]) == (len(PROMPT), want)


def test_damaged_slot_files_are_refused(saved: tuple[Path, list], tmp_path: Path) -> None:
    path, want = saved
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    with Engine.open(MODEL, n_ctx=512) as engine:
        places = [*range(0, 320, 7), *(int(i) for i in rng.integers(0, len(good), 30)), len(good) - 1]
        bad = [bytes([*good[:i], good[i] ^ (1 << int(rng.integers(8))), *good[i + 1 :]]) for i in places]
        bad += [good[:n] for n in (0, 4, 11, 12, 100, 700, len(good) // 2, len(good) - 1)] + [good + b"x"]
        for data in bad:
            path.write_bytes(data)
            with pytest.raises(GgrunError, match="damaged|no file of keys|cut short"):
                engine.restore_slot(0, path)
            assert engine.status().kv_used == 0
        assert answer(engine, [*PROMPT, 5])[1] == want  # whatever of it was taken was right
