"""What `probe` says of machines that lack something: each a sentence with the one command that mends it. Runs in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.emulation.build import Standins

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import json
from ggrun.runtime.cuda.probe import probe
found = probe()
parts = [[part.name, part.ok, part.text, part.command] for part in found.parts]
print(json.dumps([parts, found.problem, len(found.devices), len(found.unusable)]))
"""


def run(text: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", text], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def probed(environment: dict[str, str]) -> tuple[dict[str, tuple[bool, str, str]], str, int, int]:
    parts, problem, good, bad = json.loads(run(PROBE, environment))
    return {name: (ok, text, command) for name, ok, text, command in parts}, problem, good, bad


def test_all_there(standins: Standins, pycuda: None) -> None:
    parts, problem, good, bad = probed(standins.environment(devices=2, capability="86,75", driver=12000))
    assert (problem, good, bad) == ("", 2, 0)
    assert parts["driver"][:2] == (True, "CUDA 12.0")
    assert "CUDA1 stand-in GPU" in parts["devices"][1]


@pytest.mark.parametrize(
    ("settings", "part", "says", "mends"),
    [
        ({"driver": 11080}, "driver", "too old (CUDA 11.8)", "install"),
        ({"devices": 0}, "devices", "finds no GPU", "nvidia-smi"),
        ({"fail_init": 803}, "devices", "until the machine starts again", "sudo reboot"),
        ({"fail_init": 999}, "devices", "kernel module does not answer", "sudo modprobe nvidia_uvm"),
        ({"fail_init": 4}, "devices", "the NVIDIA driver fails", "nvidia-smi"),
        ({"capability": "52"}, "devices", "has compute capability 5.2", ""),
        ({"memory": 200 << 20}, "devices", "has 200 MiB of memory", ""),
    ],
)
def test_driver_and_devices(standins: Standins, settings: dict[str, object], part: str, says: str, mends: str) -> None:
    parts, problem, good, _ = probed(standins.environment(**settings))
    ok, text, command = parts[part]
    assert not ok
    assert good == 0
    assert says in text
    assert mends in command
    assert says in problem


def test_one_of_two_devices_is_too_old(standins: Standins) -> None:
    parts, _, good, bad = probed(standins.environment(devices=2, capability="52,86"))
    assert parts["devices"][0]
    assert (good, bad) == (1, 1)


def test_hidden_devices(standins: Standins) -> None:
    parts, *_ = probed(standins.environment(devices=0) | {"CUDA_VISIBLE_DEVICES": ""})
    assert parts["devices"][1:] == ("CUDA_VISIBLE_DEVICES= hides all GPUs", "unset CUDA_VISIBLE_DEVICES")


def test_no_driver_and_no_compiler(standins: Standins, tmp_path: Path) -> None:
    environment = standins.environment() | {"LD_LIBRARY_PATH": "", "GGRUN_NVRTC": str(tmp_path / "libnvrtc.so")}
    if "driver': (True" in str(probed(environment)[0]):
        pytest.skip("this machine has a driver")
    parts, problem, *_ = probed(environment)
    assert "libcuda.so.1" in parts["driver"][1]
    assert problem
    assert parts["compiler"][0] is False
    assert parts["compiler"][2] == "unset GGRUN_NVRTC"


WITHOUT_PYCUDA = """
import importlib.metadata
from importlib.metadata import PackageNotFoundError
def none(name):
    raise PackageNotFoundError(name)
importlib.metadata.version = none
"""


def test_no_pycuda(standins: Standins) -> None:
    parts, problem, *_ = json.loads(run(WITHOUT_PYCUDA + PROBE, standins.environment()))
    assert ["PyCUDA", False, "PyCUDA is not installed", "ggrun doctor --build-pycuda"] in parts
    assert problem == "PyCUDA is not installed; this mends it: ggrun doctor --build-pycuda"


CONTEXTS = """
import threading
from ggrun.runtime.cuda.probe import Context, usable_devices
first, second = (Context(device) for device in usable_devices())
with first.use():
    with second.use():
        print(second.memory())
    print(first.memory())
thread = threading.Thread(target=first.memory)
thread.start()
thread.join()
second.close()
second.close()
"""


def test_contexts_leave_no_trace(standins: Standins, pycuda: None) -> None:
    environment = standins.environment(devices=2, memory=f"{1 << 30},{2 << 30}", context_bytes=100 << 20)
    sizes = [eval(line) for line in run(CONTEXTS, environment).splitlines()]
    assert sizes == [((2 << 30) - (100 << 20), 2 << 30), ((1 << 30) - (100 << 20), 1 << 30)]


def test_context_without_memory_is_a_sentence(standins: Standins, pycuda: None) -> None:
    text = "from ggrun.runtime.cuda.probe import *\ntry: Context(usable_devices()[0])\nexcept CudaMissing as error: print(error)"
    said = run(text, standins.environment(memory=600 << 20, context_bytes=700 << 20))
    assert said.startswith("CUDA0 (stand-in GPU) cannot be used: ")
    assert "out of memory" in said
