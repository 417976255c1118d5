"""Statistics of a measurement, and what a file is called in a row."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ggrun.bench.matrix import Case
from ggrun.bench.result import cpu_name, mix_name, model_info, size_class
from ggrun.gguf.filetypes import FILE_TYPES
from tests.unit.bench_results import MODEL, result

# the keys of llama-bench's rows that mean something here, in its order
LLAMA_BENCH = """
    build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch n_ubatch n_threads
    type_k type_v n_gpu_layers n_cpu_moe flash_attn use_mmap n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts
""".split()


def test_mean_and_deviation_of_speeds_are_not_those_of_times() -> None:
    row = result(Case(512, 0, 64), 1_000_000_000, 2_000_000_000).row()
    assert (row["avg_ns"], row["stddev_ns"]) == (1_500_000_000, 707_106_781)
    assert row["avg_ts"] == pytest.approx((512 + 256) / 2)
    assert row["stddev_ts"] == pytest.approx(256 / 2**0.5)
    assert (row["n_prompt"], row["n_gen"], row["n_depth"], row["n_parallel"]) == (512, 0, 64, 1)


def test_a_single_repetition_does_not_deviate() -> None:
    row = result(Case(0, 128), 2_000_000_000).row()
    assert (row["avg_ts"], row["stddev_ts"], row["stddev_ns"]) == (64.0, 0.0, 0)


def test_speed_is_of_all_sequences() -> None:
    made = result(Case(0, 100, 0, 8), 10**9)
    assert made.samples_ts == (800.0,)
    assert made.samples() == {"samples_ns": (10**9,), "samples_ts": (800.0,)}


def test_rows_have_llama_benchs_keys_in_its_order() -> None:
    row = result(Case(512, 0), n_batch=64, type_k="q8_0", load_mode="none", n_threads=3).row()
    assert [key for key in row if key in LLAMA_BENCH] == LLAMA_BENCH
    assert set(row) - set(LLAMA_BENCH) == {"n_parallel", "load_mode"}
    assert (row["n_batch"], row["n_threads"], row["type_k"], row["use_mmap"]) == (64, 3, "q8_0", False)
    assert (row["model_filename"], row["model_size"], row["model_n_params"]) == (MODEL.filename, MODEL.n_bytes, MODEL.n_params)


def file(metadata: dict[str, object], *tensors: tuple[str, int, int]) -> SimpleNamespace:
    made = [SimpleNamespace(format=SimpleNamespace(name=name), n_elements=n, n_bytes=size) for name, n, size in tensors]
    return SimpleNamespace(metadata={"general.architecture": "llama"} | metadata, tensors=dict(enumerate(made)))


def test_names_of_models() -> None:
    tensors = ("F32", 10**6, 4 * 10**6), ("Q6_K", 4 * 10**8, 3 * 10**8), ("Q4_K", 8 * 10**8, 45 * 10**7)
    info = model_info(file({"general.file_type": 15, "general.size_label": "1B"}, *tensors), "m.gguf")
    assert (info.filename, info.type) == ("m.gguf", "llama 1B Q4_K - Medium")
    assert (info.n_params, info.n_bytes) == (1_201_000_000, 754_000_000)
    assert model_info(file({}, *tensors), "m").type == "llama 1B Q4_K"
    assert model_info(file({"general.file_type": 7, "general.size_label": "1B | \x1b[2J"}, *tensors), "m").type == "llama 1B Q8_0"


@pytest.mark.parametrize(
    ("n_params", "name"),
    [(400, "1M"), (7_344_640, "7M"), (135e6, "0.1B"), (596e6, "0.6B"), (1.24e9, "1B"), (1.54e9, "1.5B"), (8.03e9, "8B"), (70.6e9, "71B")],
)
def test_size_classes(n_params: float, name: str) -> None:
    assert size_class(int(n_params)) == name


def test_mixes_are_spelled_as_llama_cpp_does() -> None:
    named = {name: mix_name(name) for name in FILE_TYPES.values()}
    expected = {
        "Q4_K_M": "Q4_K - Medium",
        "Q3_K_L": "Q3_K - Large",
        "Q2_K_S": "Q2_K - Small",
        "Q2_K": "Q2_K - Medium",
        "Q6_K": "Q6_K",
        "Q8_0": "Q8_0",
        "Q4_1": "Q4_1",
        "F32": "all F32",
        "BF16": "BF16",
        "IQ4_NL": "IQ4_NL - 4.5 bpw",
        "IQ4_XS": "IQ4_XS - 4.25 bpw",
    }
    assert {name: named[name] for name in expected} == expected


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: another\n")
    (tmp_path / "arm").write_text("processor : 0\nCPU part : 0xd40\n")
    assert cpu_name(tmp_path / "x86") == "Some CPU @ 2 GHz"
    assert cpu_name(tmp_path / "arm") == cpu_name(tmp_path / "none") != ""
