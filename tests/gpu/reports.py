"""What the real compiler says of every kernel on every architecture: registers, spills, shared memory. Needs NVRTC, no GPU.

`wanted` is the list of all kernels that ggrun's modules may launch. Reports are kept in the cache folder under a hash of the source, since
compiling everything for every architecture takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ggrun.program.params import Attention
from ggrun.runtime.cuda import attention, matmul, reduce, rows, sources
from ggrun.runtime.cuda.launch import Arch
from ggrun.runtime.cuda.nvrtc import Nvrtc, include_folders
from ggrun.runtime.kept import cache_base

ARCHITECTURES = (61, 75, 80, 86, 89, 90, 100, 120)
SHARED_BYTES = {61: 48 << 10, 75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
FORMATS = tuple(matmul._SHAPES)
KV_TYPES = ("f16", "q8_0", "q4_0")
HEADS = ((32, 32, 128), (32, 8, 128), (64, 8, 128), (14, 2, 64), (8, 1, 256), (40, 5, 96))  # query heads, KV heads, dimensions

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?)(?=Compiling entry function|\Z)", re.DOTALL)
_NUMBERS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
    "shared": re.compile(r"(\d+) bytes smem"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One kernel on one architecture; bytes a thread, static shared bytes a block."""

    kernel: str
    cc: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


def parse(log: str) -> list[Report]:
    """The reports in what `-Xptxas=-v` makes the compiler say."""
    found = _ENTRY.findall(log)
    return [Report(name, int(cc), **{what: _first(number, text) for what, number in _NUMBERS.items()}) for name, cc, text in found]


def _first(number: re.Pattern[str], text: str) -> int:
    found = number.search(text)
    return int(found[1]) if found else 0


def wanted(
    cc: int, formats: Iterable[str] = FORMATS, heads: Iterable[tuple[int, int, int]] = HEADS, kv_types: Iterable[str] = KV_TYPES
) -> set[str]:
    """Every kernel that ggrun may launch on a device of compute capability cc, for models of these formats and shapes."""
    arch = Arch(cc, 64, SHARED_BYTES[cc])
    names = {kernel for fmt in formats for kernel in matmul.kernels(fmt, arch)} | set(reduce.KERNELS)
    for n_head, n_head_kv, dim in heads:
        params = Attention("kv", n_head, n_head_kv, dim, dim, 1.0)
        pairs = [(k, v) for k in kv_types for v in kv_types if dim % 32 == 0 or k == v == "f16"]
        names |= {kernel for k, v in pairs for kernel in attention.kernels(params, k, v, arch)}
    names |= {rows.norm_kernel(n) for n in (64, 4096, 8192, 16384, 4097)}
    names |= {rows.route_kernel(n) for n in (8, 64, 128, 256, 512)}
    names |= {f"{base}__{vector}" for base in ("glu", "take_rows", "expert_sum") for vector in (1, 4)}
    return names | {base for base in sources.bases() if _without_arguments(base)}


def _without_arguments(base: str) -> bool:
    return f"KERNEL_{base}()" in sources.texts()[sources.bases()[base]]


def reports(compiler: Nvrtc, cc: int, kernels: Iterable[str]) -> list[Report]:
    """Reports of these kernels, from the cache or compiled, files side by side."""
    work = [piece for unit in sources.units(kernels) for piece in _pieces(unit)]
    with ThreadPoolExecutor(2) as pool:
        return [report for found in pool.map(lambda unit: _report(compiler, cc, unit), work) for report in found]


def _pieces(unit: sources.Unit, size: int = 8) -> Iterator[sources.Unit]:
    """A unit in smaller ones, so that a new kernel does not compile all others again."""
    for start in range(0, len(unit.kernels), size):
        yield sources.unit(unit.file, unit.kernels[start : start + size], sources.texts())


def _report(compiler: Nvrtc, cc: int, unit: sources.Unit) -> list[Report]:
    target = compiler.target(cc)
    digest = hashlib.sha256(repr((compiler.version, target, sources.OPTIONS, unit.text, sorted(unit.headers.items()))).encode()).hexdigest()
    kept = cache_base() / "reports" / f"{digest[:24]}.json"
    if kept.exists():
        return [Report(**fields) for fields in json.loads(kept.read_text())]
    includes = [f"-I{path}" for path in include_folders()]
    made = compiler.compile(unit.text, unit.name, target, [*sources.OPTIONS, "-Xptxas=-v", *includes], unit.headers)
    found = parse(made.log)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
        json.dump([asdict(report) for report in found], file)
    Path(file.name).replace(kept)
    return found
