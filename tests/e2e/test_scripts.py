"""scripts/ggrun as a newcomer meets it: no environment, two starts at once, no Python, no network."""

import subprocess
from pathlib import Path

import pytest

import ggrun
from tests.conftest import REPO
from tests.e2e.command import environment

SCRIPT = REPO / "scripts" / "ggrun"


def start(cache: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    env = environment(XDG_CACHE_HOME=str(cache), **more)
    return subprocess.Popen([SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_without_a_python_there_is_one_sentence(tmp_path: Path) -> None:
    process = start(tmp_path, "--version", GGRUN_PYTHON="/bin/false")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: ggrun needs Python 3.11 or newer; found: /bin/false")
    assert err.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "ggrun").touch()
    process = start(tmp_path, "--version")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "set XDG_CACHE_HOME to a folder that can be written" in err


def test_without_an_index_there_is_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    nowhere = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    process = start(tmp_path, "--version", **nowhere)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert "Is there a connection to the package index?" in err.splitlines()[-1]
    assert not [path for path in (tmp_path / "ggrun").glob("env-*") if path.is_dir()]


@pytest.mark.slow
def test_two_first_starts_and_one_after(tmp_path: Path) -> None:
    processes = [start(tmp_path, "--version"), start(tmp_path, "--version")]
    told = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert [out for out, _ in told] == [f"ggrun {ggrun.__version__}\n"] * 2
    assert sum("first use: making an environment" in err for _, err in told) == 1
    assert len([path for path in (tmp_path / "ggrun").glob("env-*") if path.is_dir()]) == 1
    again = start(tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/")
    out, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    assert "Usage: ggrun" in out  # no arguments: the help
