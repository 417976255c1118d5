"""Several models of a models.toml behind one address, in a real process: by name and alias, by turns where memory is short, asleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import EMBEDDED, shared_path
from tests.e2e.serving import Served

ASKED = {"messages": [{"role": "user", "content": "What does len do?"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a models.toml of three models, one of which is not there."""
    other = shared_path("oracle", "qwen3.Q8_0.gguf")
    (tmp_path / "models.toml").write_text(
        f'[models.doc]\npath = "{EMBEDDED}"\naliases = ["gpt-4o"]\ntemperature = 0\nn_ctx = 512\n'
        f'[models.tiny]\npath = "{other}"\nn_ctx = 256\ntype_k = "q8_0"\nsystem = "Be brief."\n'
        f'[models.lost]\npath = "nowhere.gguf"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(server: Served) -> dict[str, str]:
    return {model["id"]: model["status"]["value"] for model in server.get("/v1/models")["data"]}


def ask(server: Served, name: str) -> tuple[int, Any]:
    return server.post("/v1/chat/completions", {**ASKED, "model": name})


@pytest.mark.usefixtures("folder")
def test_each_is_loaded_when_it_is_asked_for() -> None:
    with Served() as server:
        assert "the default model is doc, the first of models.toml" in server.said
        assert states(server) == {"doc": "loaded", "tiny": "unloaded", "lost": "unloaded"}
        for name, answered in (("gpt-4o", "doc"), ("tiny", "tiny"), ("never-heard-of", "doc"), ("doc", "doc")):
            status, answer = ask(server, name)
            assert (status, answer["model"]) == (200, answered)
        assert states(server) == {"doc": "loaded", "tiny": "loaded", "lost": "unloaded"}
        assert {m["id"]: m["meta"]["n_ctx"] for m in server.get("/v1/models")["data"] if m["meta"]} == {"doc": 512, "tiny": 256}
        status, answer = ask(server, "lost")
        assert status == 503
        assert "nowhere.gguf" in answer["error"]["message"]
        assert states(server)["lost"] == "failed"
        assert ask(server, "doc")[0] == 200
        assert server.stop() == 0


@pytest.mark.usefixtures("folder")
def test_one_is_named_and_the_others_are_there_too() -> None:
    with Served("tiny", "--strict-model", "-a", "first") as server:
        assert states(server) == {"first": "loaded", "doc": "unloaded", "lost": "unloaded"}
        assert ask(server, "tiny")[1]["model"] == "first"
        assert ask(server, "other")[0] == 404
        assert server.stop() == 0


def test_where_memory_is_short_they_take_turns(folder: Path) -> None:
    text = (folder / "models.toml").read_text()
    (folder / "models.toml").write_text(text.replace("n_ctx", "kv_tokens = 20000\nn_ctx"))
    budget = 145 + 49  # MiB: of the process, as it is listed, and of the first model alone
    with Served("--ram-budget", f"{budget}MiB", "-cram", "0", "-ub", "64") as server:
        assert ask(server, "doc")[0] == 200
        assert ask(server, "tiny")[0] == 200
        assert states(server) == {"doc": "unloaded", "tiny": "loaded", "lost": "unloaded"}
        answers: list[str] = []

        def client(names: list[str]) -> Iterator[None]:
            for name in names:
                status, answer = ask(server, name)
                answers.append(answer["model"] if status == 200 else str(answer))
            yield

        threads = [threading.Thread(target=lambda n=n: list(client(n))) for n in (["doc", "tiny"] * 4, ["tiny", "doc"] * 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["doc"] * 8 + ["tiny"] * 8
        assert server.stop() == 0


@pytest.mark.usefixtures("folder")
def test_they_fall_asleep_and_wake_up() -> None:
    with Served("-c", "4096", "-np", "16", "--kv-tokens", "65536", "-cram", "0", "--sleep-idle-seconds", "1") as server:
        first = ask(server, "doc")[1]["choices"][0]["message"]["content"]
        process = psutil.Process(server.process.pid)
        awake = process.memory_info().rss
        deadline = time.monotonic() + 20
        while states(server)["doc"] != "sleeping":
            assert time.monotonic() < deadline, "it does not fall asleep"
            time.sleep(0.1)
        assert server.get("/health") == {"status": "ok"}
        assert process.memory_info().rss < awake
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(server, "doc"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(status, answer["choices"][0]["message"]["content"]) for status, answer in answers] == [(200, first)] * 4
        assert server.stop() == 0
