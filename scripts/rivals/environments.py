"""The rival's environments in the user's cache folder: llama-cpp-python, compiled here, once for this processor and once without AVX-512.

Knows: venv, pip and CMake's flags. Must not know: what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from ggrun.errors import GgrunError

PACKAGE = "llama-cpp-python"
COMMON = "-DLLAVA_BUILD=OFF -DGGML_OPENMP=ON"
CMAKE_FLAGS = {
    "native": f"-DGGML_NATIVE=ON {COMMON}",
    "avx2": "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    f"-DGGML_AVX512=OFF -DGGML_AVX_VNNI=OFF {COMMON}",
}
Say = Callable[[str], None]


def home() -> Path:
    """Where environments, models, saved contexts and results are kept."""
    return Path(user_cache_path("ggrun")) / "rivals"


def rival_python(build: str, say: Say) -> Path:
    """The Python of an environment that has the rival, built when it is not there yet. GgrunError when it cannot be."""
    folder = home() / build
    python = folder / "bin" / "python"
    if (folder / ".built").exists() and python.exists():
        return python
    for tools, package in ((("cmake",), "cmake"), (("c++", "g++", "clang++"), "g++")):
        if not any(map(shutil.which, tools)):
            raise GgrunError(f"llama.cpp is compiled here, and {tools[0]} is missing; install it (on Debian: apt install {package})")
    say(f"building llama.cpp ({build}) in {folder}; takes several minutes, once")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = home() / f"{build}.log"
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--verbose", "--no-binary", PACKAGE, PACKAGE],
    )
    with log.open("w") as output:
        for step in steps:
            environment = os.environ | {"CMAKE_ARGS": CMAKE_FLAGS[build]}
            if subprocess.run(step, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
                raise GgrunError(f"llama.cpp could not be built: `{' '.join(step[1:])}` failed; {log} says why, run this again to retry")
    (folder / ".built").touch()
    return python
