"""A server that is started again: prompts it finds on disk, slots it restores."""

from pathlib import Path
from typing import Any

import pytest

from ggrun.runtime.kept import cache_base
from tests.e2e.serving import Served

SYSTEM = "You answer questions about Python's standard library, in few words, with names of modules and functions, and nothing else. " * 3


def chat(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"messages": messages, "max_tokens": 6, "temperature": 0, "seed": 1}


def ask(server: Served, question: str) -> tuple[str, int, int]:
    """The answer, the tokens of the prompt, and how many of them were found."""
    status, answer = server.post("/v1/chat/completions", chat(question))
    assert status == 200, answer
    usage = answer["usage"]
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache but for compiled kernels, which take long to make."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for kernels in cache_base().glob("kernels*"):
        (folder / kernels.name).symlink_to(kernels)
    return folder


def test_a_restart_does_not_compute_a_system_prompt_again(cache: Path) -> None:
    with Served("--disk-cache", GGRUN_CACHE_DIR=str(cache)) as server:
        want, _, _ = ask(server, "What is json?")
        ask(server, "What is math?")  # its second use
        assert server.stop() == 0
    files = list((cache / "prefixes").rglob("*.kv"))
    assert files
    with Served("--disk-cache", GGRUN_CACHE_DIR=str(cache)) as server:
        got, n_prompt, found = ask(server, "What is json?")
        assert got == want
        assert 32 * len(files) == found >= n_prompt - 64
        server.stop()
    with Served(GGRUN_CACHE_DIR=str(cache)) as server:
        assert ask(server, "What is json?") == (want, n_prompt, 0), "--no-disk-cache"


def test_slots_over_http(tmp_path: Path) -> None:
    flags = ("--slot-save-path", tmp_path, "-np", "1")
    with Served(*flags) as server:
        want, n_prompt, _ = ask(server, "What is json?")
        status, saved = server.post("/slots/0?action=save", {"filename": "one"})
        assert (status, saved["n_saved"], saved["n_written"]) == (200, n_prompt + 5, (tmp_path / "one").stat().st_size)
        assert server.post("/slots/0?action=erase", {})[1]["n_erased"] == n_prompt + 5
        assert ask(server, "What is json?")[2] == 0
    (tmp_path / "bad").write_bytes((tmp_path / "one").read_bytes()[:-1])
    with Served(*flags) as server:
        assert server.post("/slots/0?action=restore", {"filename": "one"})[1]["n_restored"] == n_prompt + 5
        assert ask(server, "What is json?") == (want, n_prompt, n_prompt - 1)
        status, error = server.post("/slots/0?action=restore", {"filename": "bad"})
        assert status == 400
        assert "cut short" in error["error"]["message"]
