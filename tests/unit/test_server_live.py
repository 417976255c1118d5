"""GET /status and GET /plan: what is told of models that are loaded and of those that are not; nothing is loaded for it."""

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from ggrun.engine.status import EngineStatus, SlotStatus
from ggrun.server.app import create_app
from ggrun.server.settings import Settings
from ggrun.server.shelf import ModelState
from tests.plan_machines import machine, model, planned
from tests.unit.server_pieces import NoShelf

SLOTS = (SlotStatus(0, "answer", 4096, n_tokens=100, n_prompt=90, n_prompt_done=90, n_predicted=10), SlotStatus(1, "idle", 4096))
STATUS = EngineStatus(SLOTS, 3, 8192, 128, 640, 1000, 250, 400, 1.5, 8.0, 77, 0)


class Shelf(NoShelf):
    """One model that is loaded and one that is not; using either is a fault."""

    def __init__(self, plan: Any) -> None:
        engine: Any = SimpleNamespace(status=lambda: STATUS, n_ctx=4096, plan=plan)
        loaded: Any = SimpleNamespace(engine=engine)
        self.states = [
            ModelState("llama", ("default",), None, "loaded", 123, loaded),
            ModelState("other", (), None, "failed", 0, None, "the file is gone"),
        ]

    def models(self) -> list[ModelState]:
        return self.states

    def use(self, name: str | None = None) -> Any:
        raise AssertionError("a look at the server must not load a model")


@pytest.fixture(scope="module")
def plan() -> Any:
    return planned(model("llama-3.1-8b"), machine((6,), 16), n_ctx=32768, n_gpu_layers="20")


def ask(plan: Any, path: str, **settings: Any) -> Any:
    app = create_app(Shelf(plan), Settings(**settings))  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1:8080") as http:
        return http.get(path)


def test_status_tells_of_every_model(plan: Any) -> None:
    loaded, failed = ask(plan, "/status").json()["models"]
    assert (loaded["name"], loaded["state"], loaded["loaded"], loaded["n_ctx"]) == ("llama", "loaded", 123, 4096)
    engine = loaded["engine"]
    assert (engine["kv_tokens"], engine["kv_used"], engine["kv_cached"], engine["n_waiting"]) == (8192, 128, 640, 3)
    assert [slot["state"] for slot in engine["slots"]] == ["answer", "idle"]
    assert engine["slots"][0]["n_tokens"] == 100
    assert (failed["state"], failed["error"], failed["engine"], failed["n_ctx"]) == ("failed", "the file is gone", None, None)


def test_no_slots_leaves_them_out(plan: Any) -> None:
    engine = ask(plan, "/status", slots=False).json()["models"][0]["engine"]
    assert "slots" not in engine
    assert engine["kv_used"] == 128


@pytest.mark.parametrize("path", ["/plan", "/plan?model=llama", "/plan?model=default"])
def test_the_plan_is_what_the_command_prints(plan: Any, path: str) -> None:
    told = ask(plan, path).json()
    assert told["model"] == "llama"
    assert told["n_gpu_layers"] == 20
    assert [device["device"] for device in told["devices"]] == ["CPU", "CUDA0"]
    for device in told["devices"]:
        assert device["used_bytes"] == sum(line["n_bytes"] for line in told["ledger"] if line["device"] == device["device"])
    assert {row["unit"]: row["device"] for row in told["units"]}["layer.13-31.attn"] == "CUDA0"
    assert "read_bandwidth" not in told  # nothing is measured while the server serves


@pytest.mark.parametrize(("name", "status", "words"), [("other", 409, "not loaded"), ("nobody", 404, "no model 'nobody'")])
def test_a_model_without_a_plan_is_a_sentence(plan: Any, name: str, status: int, words: str) -> None:
    answer = ask(plan, f"/plan?model={name}")
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_all_paths_begin_with_a_prefix(plan: Any) -> None:
    for path, status in (("/chat/", 200), ("/chat/status", 200), ("/chat/static/app.js", 200), ("/status", 404), ("/chatter/status", 404)):
        assert ask(plan, path, api_prefix="/chat").status_code == status
    error = ask(plan, "/v1/status", api_prefix="/a/b").json()["error"]
    assert "begins with /a/b/" in error["message"]
    app = create_app(Shelf(plan), Settings(api_prefix="/chat", api_keys=("k",)))  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1:8080", follow_redirects=False) as http:
        there = http.get("/chat")
        assert (there.status_code, there.headers["location"]) == (307, "/chat/")
        made = http.get("/chat/openapi.json", headers={"authorization": "Bearer k"}).json()
        assert made["servers"] == [{"url": "/chat"}]
        assert [http.get(f"/chat{path}").status_code for path in ("/health", "/plan")] == [200, 401]
        assert http.get("/chat/plan", headers={"host": "evil.example"}).status_code == 403
        assert http.get("/chat/api/nothing", headers={"authorization": "Bearer k"}).json() == {"error": "there is nothing at /api/nothing"}


def test_no_webui_leaves_only_the_page_out(plan: Any) -> None:
    assert ask(plan, "/").status_code == 200
    assert ask(plan, "/static/app.js").status_code == 200
    for path, status in (("/", 404), ("/static/app.js", 404), ("/status", 200)):
        assert ask(plan, path, webui=False).status_code == status
    app = create_app(Shelf(plan), Settings(webui=False))  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1:8080") as http:
        assert http.head("/").status_code == 200  # Ollama's clients look for a server so
    assert ask(plan, "/", api_keys=("k",)).status_code == 200  # the files need no key, what they show does
    assert ask(plan, "/plan", api_keys=("k",)).status_code == 401
