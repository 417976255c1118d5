"""What `ggrun doctor --build-pycuda` says when it cannot build, and the library it links with; the build itself needs a package index."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.errors import GgrunError
from ggrun.runtime.cuda import build_pycuda

CUDA_H = """
#define cuMemAlloc cuMemAlloc_v2
#define cuStreamBeginCapture __CUDA_API_PTSZ(cuStreamBeginCapture_v2)
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGRUN_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GgrunError, match=r"there is no g\+\+; .* apt install g\+\+"):
        build_pycuda.check()


def test_no_python_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(build_pycuda.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(GgrunError, match=r"Python's headers are missing; .* apt install python3\.\d+-dev"):
        build_pycuda.check()


def test_an_environment_without_pip_uses_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_pycuda, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert build_pycuda.pip() == ["/usr/bin/pip3", "--python", sys.executable]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GgrunError, match="there is no pip"):
        build_pycuda.pip()


def test_a_kept_wheel_is_installed_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_pycuda.kept_wheel() is None
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheel = cache / "wheels" / f"pycuda-{build_pycuda.VERSION}-{tag}-{tag}-linux_x86_64.whl"
    wheel.parent.mkdir()
    wheel.touch()
    commands: list[list[str]] = []
    monkeypatch.setattr(build_pycuda, "_run", lambda command, *rest: commands.append(list(command)))
    build_pycuda.install(lambda text: None)
    assert [str(wheel) in command for command in commands] == [True]


def test_a_failure_says_why_and_where(cache: Path) -> None:
    with pytest.raises(GgrunError, match=r"PyCUDA does not build: the reason: error 7 \(the whole story is in .*build_pycuda\.log\)"):
        build_pycuda._run([sys.executable, "-c", "import sys; sys.exit('first\\nthe reason: error 7\\nlast')"], "does not build")
    assert "first\nthe reason" in (cache / "build_pycuda.log").read_text()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_library_to_link_with(tmp_path: Path) -> None:
    for name, text in (("cuda.h", CUDA_H), ("cudaProfiler.h", "CUresult CUDAAPI cuProfilerStart(void);")):
        (tmp_path / name).write_text(text)
    made = build_pycuda._stand_in(tmp_path, tmp_path) / "libcuda.so"
    library = ctypes.CDLL(str(made))
    for name in ("cuInit", "cuMemAlloc", "cuMemAlloc_v2", "cuStreamBeginCapture_v2", "cuProfilerStart"):
        assert hasattr(library, name)
    if shutil.which("readelf"):
        assert "libcuda.so.1" in subprocess.run(["readelf", "-d", str(made)], capture_output=True, text=True).stdout
