"""`ggrun doctor` and `--list-devices`, in processes, with and without the stand-in GPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.cli.doctor import rows
from tests.gpu.emulation.build import Standins

ROOT = Path(__file__).resolve().parents[2]


def ggrun(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggrun", *arguments]
    return subprocess.run(command, env=environment | {"COLUMNS": "160"}, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_machine_with_two_gpus(standins: Standins, pycuda: None) -> None:
    done = ggrun(standins.environment(devices=2, capability="86,52", memory=f"{6 << 30}"), "doctor")
    assert done.returncode == 0, done.stderr
    assert re.search(r"CUDA0 .* compute capability 8\.6, 6\.00 GiB", done.stdout)
    assert re.search(r"no .* CUDA1 .* has compute capability 5\.2", done.stdout)


def test_an_old_driver_has_one_command(standins: Standins) -> None:
    done = ggrun(standins.environment(driver=11040), "doctor")
    assert done.returncode == 1
    assert "ggrun needs CUDA 12.0, release 525, or newer" in done.stdout
    assert "NVIDIA driver: this mends it:" in done.stdout


def test_json(standins: Standins, tmp_path: Path) -> None:
    environment = standins.environment(capability=75) | {"GGRUN_CACHE_DIR": str(tmp_path / "new")}
    report = json.loads(ggrun(environment, "doctor", "--json").stdout)
    assert report["cuda"]["devices"][0]["cc"] == 75
    assert report["cuda"]["parts"]["compiler"] == {"ok": True, "text": "NVRTC 12.9", "command": ""}
    assert report["cache"] == {"folder": str(tmp_path / "new"), "bytes": 0, "writable": True}
    assert report["processor"]["cores"] > 0


def test_without_a_gpu_nothing_is_missed() -> None:
    missing = {"ok": False, "text": "PyCUDA is not installed", "command": "ggrun doctor --build-pycuda"}
    driver = {"ok": False, "text": "there is no NVIDIA driver (libcuda.so.1), and no NVIDIA GPU was found in this machine", "command": ""}
    report = {
        "processor": {"name": "a", "tier": "avx2", "cores": 2, "memory_bytes": 1, "available_bytes": 1},
        "cuda": {
            "no_gpu": True,
            "devices": [],
            "unusable": [],
            "parts": {"driver": driver, "devices": driver, "pycuda": missing, "compiler": missing},
        },
        "cache": {"folder": "/x", "bytes": 0, "writable": True},
    }
    assert not any(row.command for row in rows(report))
    report["cuda"]["no_gpu"] = False
    assert [row.part for row in rows(report) if row.command] == ["PyCUDA", "CUDA compiler"]
    report["cache"]["writable"] = False
    assert next(row for row in rows(report) if row.part == "kernel cache").command


@pytest.mark.parametrize("command", ["run", "chat", "bench", "plan"])
def test_list_devices(standins: Standins, pycuda: None, command: str) -> None:
    environment = standins.environment(devices=2, memory=f"{2 << 30},{1 << 30}", context_bytes=256 << 20)
    done = ggrun(environment, command, "--list-devices")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Available devices:",
        "  CUDA0: stand-in GPU (2048 MiB, 1792 MiB free)",
        "  CUDA1: stand-in GPU (1024 MiB, 768 MiB free)",
    ]
