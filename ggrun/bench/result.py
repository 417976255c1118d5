"""What a measurement is a measurement of, and its figures; the keys of a row are llama-bench's."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ggrun import __version__
from ggrun.bench.matrix import Case, Settings
from ggrun.gguf import GgufFile
from ggrun.gguf.filetypes import FILE_TYPES
from quant.format import format_by_name

_MIXES = {"S": "Small", "M": "Medium", "L": "Large"}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A file as a row names it; n_bytes of its weights."""

    filename: str
    type: str
    n_bytes: int
    n_params: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A case of one model under some settings, before it has run. n_threads: those that run; n_gpu_layers and gpus: those of the plan."""

    model: ModelInfo
    settings: Settings
    case: Case
    n_threads: int
    n_gpu_layers: int = 0
    gpus: str = ""

    @property
    def backend(self) -> str:
        """llama-bench's name of what computes."""
        return "CUDA" if self.gpus else "CPU"


@dataclass(frozen=True, slots=True)
class Result:
    """An entry and what was measured: when (ISO 8601, UTC), and the nanoseconds of each repetition."""

    entry: Entry
    test_time: str
    samples_ns: tuple[int, ...]

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens a second of each repetition, of all sequences together."""
        return tuple(self.entry.case.n_tokens * 1e9 / ns for ns in self.samples_ns)

    def row(self) -> dict[str, Any]:
        """Every column but the samples, in llama-bench's order; n_parallel and load_mode are ggrun's own."""
        model, settings, case = self.entry.model, self.entry.settings, self.entry.case
        return {
            "build_commit": f"ggrun {__version__}",
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": self.entry.gpus,
            "backends": self.entry.backend,
            "model_filename": model.filename,
            "model_type": model.type,
            "model_size": model.n_bytes,
            "model_n_params": model.n_params,
            "n_batch": settings.n_batch,
            "n_ubatch": settings.n_ubatch,
            "n_threads": self.entry.n_threads,
            "type_k": settings.type_k,
            "type_v": settings.type_v,
            "n_gpu_layers": self.entry.n_gpu_layers,
            "n_cpu_moe": settings.n_cpu_moe,
            "flash_attn": True,
            "use_mmap": settings.load_mode != "none",
            "load_mode": settings.load_mode,
            "n_prompt": case.n_prompt,
            "n_gen": case.n_gen,
            "n_depth": case.n_depth,
            "n_parallel": case.n_parallel,
            "test_time": self.test_time,
            "avg_ns": round(fmean(self.samples_ns)),
            "stddev_ns": round(spread(self.samples_ns)),
            "avg_ts": fmean(self.samples_ts),
            "stddev_ts": spread(self.samples_ts),
        }

    def samples(self) -> dict[str, Any]:
        """The repetitions one by one, which only JSON has room for."""
        return {"samples_ns": self.samples_ns, "samples_ts": self.samples_ts}


def spread(samples: tuple[float, ...] | tuple[int, ...]) -> float:
    """The sample standard deviation; 0 of a single sample."""
    return stdev(samples) if len(samples) > 1 else 0.0


def model_info(file: GgufFile, filename: str) -> ModelInfo:
    """A file's row: `llama 1B Q4_K - Medium`, as llama-bench would call it."""
    tensors = file.tensors.values()
    n_params, n_bytes = sum(t.n_elements for t in tensors), sum(t.n_bytes for t in tensors)
    label = file.metadata.get("general.size_label")
    size = label if isinstance(label, str) and re.fullmatch(r"[\w.+-]{1,16}", label) else size_class(n_params)
    number = file.metadata.get("general.file_type")
    mix = FILE_TYPES.get(number) if isinstance(number, int) else None
    if mix is None:  # the format with the most bytes names it
        names = {t.format.name: 0 for t in tensors}
        for t in tensors:
            names[t.format.name] += t.n_bytes
        mix = max(names, key=lambda name: names[name])
    return ModelInfo(filename, f"{file.metadata.get('general.architecture')} {size} {mix_name(mix)}", n_bytes, n_params)


def size_class(n_params: int) -> str:
    """The size people call a model by: 1B, 1.5B, 8B, 0.6B, 4M."""
    if n_params < 10**8:
        return f"{max(1, round(n_params / 1e6))}M"
    billions = n_params / 1e9
    step = 0.1 if billions < 1 else 0.5 if billions < 2 else 1
    return f"{round(billions / step) * step:g}B"


def mix_name(mix: str) -> str:
    """Q4_K_M as llama.cpp spells it in a model's description: Q4_K - Medium."""
    stem, _, letter = mix.rpartition("_")
    if "_K" in stem and letter in _MIXES:
        return f"{stem} - {_MIXES[letter]}"
    if mix == "Q2_K":
        return "Q2_K - Medium"
    if mix == "F32":
        return "all F32"
    return f"{mix} - {format_by_name(mix).bits_per_weight:g} bpw" if mix in ("IQ4_NL", "IQ4_XS") else mix


@cache
def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux has it, else its architecture."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
