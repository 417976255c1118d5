"""Real files, cut anywhere and overwritten anywhere: refused in a sentence or read, never a crash, a hang or a large allocation.

A seeded loop: case N of a file is the same on every machine, and a failure says what was done to the file.
"""

import mmap
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from ggrun.gguf import GgufError, GgufFile, GgufWriter, MetadataArray, open_gguf
from quant.format import format_by_name
from tests.conftest import EMBEDDED, shared_path

SECONDS_PER_CASE = 20
MEMORY_FOR_A_CASE = 512 << 20
Damage: TypeAlias = Callable[[bytearray], object]
HUGE = [
    0,
    1,
    2,
    3,
    0xFF,
    0xFFFF,
    1 << 16,
    1 << 20,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 60,
    (1 << 61) + 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def read_everything(file: GgufFile) -> None:
    """Use whatever a damaged file that was accepted offers."""

    def decode(value: object) -> None:
        if isinstance(value, MetadataArray):
            for element in value.tolist()[:100_000]:
                decode(element)
            if value:
                _ = value[len(value) - 1]

    for value in file.metadata.values():
        decode(value)
    for tensor in file.tensors.values():
        assert len(tensor.raw) == tensor.n_bytes == tensor.n_rows * tensor.row_bytes
        _ = int(tensor.raw[0]) + int(tensor.raw[-1])


def try_file(path: Path, damage: str) -> bool:
    """Whether the file was accepted. AssertionError on anything but reading it or refusing it as the contract says."""
    try:
        with open_gguf(path) as file:
            read_everything(file)
        return True
    except GgufError as error:
        sentence = str(error)
        assert sentence.startswith(str(path.parent)), f"{damage}: {sentence}"
        assert sentence.isprintable(), f"{damage}: {sentence}"
        assert "allocate memory" not in sentence, f"{damage}: {sentence}"
        return False
    except BaseException as error:
        raise AssertionError(f"{damage}: {type(error).__name__}: {error}") from error


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Little memory to allocate, and an alarm that `watched` sets before each case."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"reading took more than {SECONDS_PER_CASE} s")

    before = signal.signal(signal.SIGALRM, ring)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_FOR_A_CASE, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def run_cases(path: Path, cases: Iterable[tuple[str, Damage]], around: int) -> tuple[int, int]:
    """Apply each case to the first `around` bytes of the file, try it, restore it; how many were refused and accepted."""
    refused = accepted = 0
    with path.open("r+b", buffering=0) as out:
        original = out.read(around)
        for name, damage in cases:
            head = bytearray(original)
            damage(head)
            assert len(head) == around
            os.pwrite(out.fileno(), head, 0)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
            if try_file(path, name):
                accepted += 1
            else:
                refused += 1
        os.pwrite(out.fileno(), original, 0)
    assert try_file(path, "nothing")
    return refused, accepted


def cut(path: Path, lengths: Iterable[int], needed: int) -> None:
    """Cut the file to each of the lengths, the longest first: refused exactly where it lacks one of the bytes it needs."""
    for n in sorted(lengths, reverse=True):
        os.truncate(path, n)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
        assert try_file(path, f"cut after {n} bytes") == (n >= needed), f"cut after {n} of {needed} needed bytes"


def overwrite(head: bytearray, at: int, with_: bytes) -> None:
    head[at : at + len(with_)] = with_[: len(head) - at]


def random_damage(seed: int, around: int) -> tuple[str, Damage]:
    """The damage that the number `seed` stands for."""
    rng = random.Random(seed)
    at = rng.randrange(around)
    match rng.randrange(8):
        case 0 | 1:
            bit = 1 << rng.randrange(8)
            return f"seed {seed}: flip bit {bit} of byte {at}", lambda head: head.__setitem__(at, head[at] ^ bit)
        case 2:
            byte = rng.randrange(256)
            return f"seed {seed}: byte {at} = {byte}", lambda head: head.__setitem__(at, byte)
        case 3 | 4:
            word = rng.choice(HUGE)
            return f"seed {seed}: 8 bytes at {at} = {word}", lambda head: overwrite(head, at, struct.pack("<Q", word))
        case 5:
            word = rng.choice(HUGE) & 0xFFFFFFFF
            return f"seed {seed}: 4 bytes at {at} = {word}", lambda head: overwrite(head, at, struct.pack("<I", word))
        case 6:
            n, source = rng.randrange(1, 200), rng.randrange(around)
            return f"seed {seed}: {n} bytes at {at} from {source}", lambda head: overwrite(head, at, bytes(head[source : source + n]))
        case _:
            noise = rng.randbytes(rng.randrange(1, 64))
            return f"seed {seed}: noise at {at}", lambda head: overwrite(head, at, noise)


def sample(path: Path) -> Path:
    """A small file with every kind of thing in it."""
    writer = GgufWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("general.alignment", 64)
    for key, value in {"b": True, "f": 0.5, "i": -3, "u": 1 << 40, "s": "text", "empty": []}.items():
        writer.add(key, value)
    writer.add("tokenizer.ggml.tokens", [f"t{i}" for i in range(20)])
    writer.add("tokenizer.ggml.scores", np.arange(20, dtype=np.float32))
    writer.add("nested", [[["a", "b"], ["c"]], [["d"]]])
    for name, dims, kind in [("token_embd.weight", (32, 4), "Q8_0"), ("blk.0.attn_q.weight", (256, 2, 2), "Q4_K"), ("norm", (3,), "F32")]:
        fmt = format_by_name(kind)
        writer.add_tensor(name, dims, fmt, bytes(fmt.row_bytes(dims[0]) * int(np.prod(dims[1:]))))
    writer.write()
    return path


def extents(path: Path) -> tuple[int, int]:
    """Bytes of the header, and bytes of the file that are needed."""
    with open_gguf(path) as file:
        tensors = file.tensors.values()
        return min((t.offset for t in tensors), default=file.n_bytes), max((t.offset + t.n_bytes for t in tensors), default=file.n_bytes)


def test_cut_after_every_byte(tmp_path: Path) -> None:
    path = sample(tmp_path / "sample.gguf")
    cut(path, range(path.stat().st_size), extents(path)[1])


def test_every_byte_changed(tmp_path: Path) -> None:
    path = sample(tmp_path / "sample.gguf")
    around, _ = extents(path)

    def flip(at: int, mask: int) -> Damage:
        return lambda head: overwrite(head, at, bytes([head[at] ^ mask]))

    cases = [(f"byte {at} ^ {mask}", flip(at, mask)) for at in range(around) for mask in (1, 0x80, 0xFF)]
    refused, accepted = run_cases(path, cases, around)
    assert refused > around / 2
    assert accepted > 0


def test_every_word_made_huge(tmp_path: Path) -> None:
    path = sample(tmp_path / "sample.gguf")
    around, _ = extents(path)

    def replace(at: int, word: int) -> Damage:
        return lambda head: overwrite(head, at, struct.pack("<Q", word))

    cases = [(f"8 bytes at {at} = {word}", replace(at, word)) for at in range(around - 8) for word in HUGE[9:]]
    refused, _ = run_cases(path, cases, around)
    assert refused > around


def test_random_damage_of_a_small_file(tmp_path: Path) -> None:
    path = sample(tmp_path / "sample.gguf")
    around, _ = extents(path)
    refused, accepted = run_cases(path, (random_damage(seed, around) for seed in range(20_000)), around)
    assert refused > 3_000
    assert accepted > 1_000


def damage_real_file(source: Path, tmp_path: Path, n_cases: int) -> None:
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    around, needed = extents(path)
    refused, accepted = run_cases(path, (random_damage(seed, around) for seed in range(n_cases)), around)
    assert refused > n_cases / 50
    assert accepted > 0
    rng = random.Random(n_cases)
    cut(path, [rng.randrange(needed) for _ in range(n_cases // 10)], needed)


def test_damage_of_the_embedded_model(tmp_path: Path) -> None:
    damage_real_file(EMBEDDED, tmp_path, 2_000)


@pytest.mark.parametrize("name", ["llama-gqa.Q2_K", "gpt-oss.MXFP4_MOE"])
def test_damage_of_an_oracle_model(name: str, tmp_path: Path) -> None:
    damage_real_file(shared_path("oracle", f"{name}.gguf"), tmp_path, 2_000)


@pytest.mark.slow
def test_damage_of_large_vocabularies(shared: Path, tmp_path: Path) -> None:
    for source in sorted((shared / "vocab").glob("*.gguf")):
        damage_real_file(source, tmp_path, 40)


@pytest.mark.slow
def test_long_random_damage(tmp_path: Path) -> None:
    path = sample(tmp_path / "sample.gguf")
    around, _ = extents(path)
    refused, _ = run_cases(path, (random_damage(seed, around) for seed in range(1_000_000, 1_200_000)), around)
    assert refused > 50_000
