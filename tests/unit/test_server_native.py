"""llama.cpp's small routes: health, props, tokenize, detokenize, apply-template, slots, metrics."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ggrun.server.metrics import Metrics
from ggrun.server.settings import Settings
from tests.unit.fake_shelf import BASE, FakeServed, FakeShelf, fake_app


def client(engine: FakeServed | None = None, state: str = "loaded", **settings: Any) -> TestClient:
    return TestClient(fake_app(Settings(**settings), engine=engine, state=state), BASE)


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [("loaded", 200, "ok"), ("sleeping", 200, "ok"), ("unloaded", 200, "ok"), ("loading", 503, "Loading model"), ("failed", 503, "broken")],
)
def test_health(state: str, status: int, words: str) -> None:
    for path in ("/health", "/v1/health"):
        answer = client(state=state).get(path)
        assert answer.status_code == status
        assert words in answer.text


def test_health_while_stopping() -> None:
    http = client()
    http.app.state.lifetime.stopping.set()  # type: ignore[attr-defined]
    assert http.get("/health").status_code == 503


def test_closing_the_app_closes_the_shelf() -> None:
    app = fake_app()
    with TestClient(app, BASE):
        assert not app.state.shelf.closed
    assert app.state.shelf.closed


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"content": "ab"}, [97, 98]),
        ({"content": ""}, []),
        ({"content": "a", "add_special": True}, [256, 97]),
        ({"content": "a<end>"}, [97, 257]),
        ({"content": "<end>", "parse_special": False}, list(b"<end>")),
        ({"content": "aä", "with_pieces": True}, [{"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}, {"id": 164, "piece": [164]}]),
    ],
)
def test_tokenize(asked: dict[str, Any], tokens: list[Any]) -> None:
    answer = client().post("/tokenize", json=asked)
    assert answer.json() == {"tokens": tokens}


def test_detokenize() -> None:
    assert client().post("/detokenize", json={"tokens": [104, 105, 257]}).json() == {"content": "hi<end>"}


@pytest.mark.parametrize("bad", [-1, 258, 10**30])
def test_ids_outside_the_vocabulary(bad: int) -> None:
    answer = client().post("/detokenize", json={"tokens": [1, bad]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens[1]"


def test_apply_template() -> None:
    http = client(template={"a": 1, "b": 1})
    asked = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"b": 2}, "reasoning_effort": "low"}
    assert http.post("/apply-template", json=asked).json() == {"prompt": "hi"}
    template = http.app.state.shelf.engine.chat_template  # type: ignore[attr-defined]
    assert template.seen[0][3] == {"a": 1, "b": 2, "reasoning_effort": "low"}


def test_a_request_names_its_model() -> None:
    http = client()
    http.post("/tokenize", json={"content": "a", "model": "other"})
    assert http.app.state.shelf.asked == ["other"]  # type: ignore[attr-defined]


def test_props() -> None:
    answer = client().get("/props").json()
    assert (answer["total_slots"], answer["model_path"], answer["chat_template"]) == (2, "models/fake.gguf", "{{ messages }}")
    settings = answer["default_generation_settings"]
    assert settings["n_ctx"] == 64
    assert (settings["params"]["top_k"], settings["params"]["temperature"], settings["params"]["n_predict"]) == (7, 0.8, 99)
    assert (answer["bos_token"], answer["eos_token"]) == ("<s>", "<end>")


def test_props_neither_wake_a_model_nor_keep_it_awake() -> None:
    asked = client()
    shelf = asked.app.state.shelf  # type: ignore[attr-defined]
    awake = asked.get("/props").json()
    assert (awake["is_sleeping"], shelf.asked) == (False, [])
    shelf.state = "sleeping"
    assert asked.get("/props?model=alias").json() == awake | {"is_sleeping": True}
    assert shelf.asked == []
    shelf.state = "unloaded"
    assert asked.get("/props").json() == awake
    assert shelf.asked == [None]


@pytest.mark.parametrize(("allowed", "asked", "status"), [(False, {}, 501), (True, {}, 200), (True, {"temperature": 1}, 400)])
def test_changing_props(allowed: bool, asked: dict[str, Any], status: int) -> None:
    assert client(props=allowed).post("/props", json=asked).status_code == status


def test_what_is_not_there() -> None:
    http = client()
    assert http.get("/lora-adapters").json() == []
    assert http.post("/lora-adapters", json=[{"id": 0, "scale": 1}]).status_code == 501
    assert http.post("/v1/rerank", json={}).status_code == 501


def test_slots() -> None:
    rows = client(FakeServed(busy=1)).get("/slots").json()
    assert [(row["id"], row["is_processing"], row["n_ctx"]) for row in rows] == [(0, True, 64), (1, False, 64)]
    assert (rows[0]["next_token"][0]["n_decoded"], rows[0]["state"]) == (3, "answer")


@pytest.mark.parametrize(
    ("busy", "query", "status"),
    [(1, "?fail_on_no_slot=1", 200), (2, "?fail_on_no_slot=1", 503), (2, "", 200), (2, "?fail_on_no_slot=0", 200)],
)
def test_no_slot(busy: int, query: str, status: int) -> None:
    assert client(FakeServed(busy=busy)).get(f"/slots{query}").status_code == status


def test_slots_of_a_model_that_is_not_loaded() -> None:
    http = client(state="unloaded")
    assert http.get("/slots").json() == []
    assert http.app.state.shelf.asked == []  # type: ignore[attr-defined]  # nothing was loaded for it


def test_slots_switched_off() -> None:
    assert client(slots=False).get("/slots").status_code == 501


def test_saving_and_restoring(tmp_path: Path) -> None:
    http = client(slot_save_path=tmp_path)
    saved = http.post("/slots/1?action=save", json={"filename": "a chat.bin"}).json()
    assert {name: saved[name] for name in ("id_slot", "filename", "n_saved", "n_written")} == {
        "id_slot": 1,
        "filename": "a chat.bin",
        "n_saved": 7,
        "n_written": 5,
    }
    assert http.post("/slots/0?action=restore", json={"filename": "a chat.bin"}).json()["n_restored"] == 7
    assert http.post("/slots/0?action=erase").json() == {"id_slot": 0, "n_erased": 9}
    engine = http.app.state.shelf.engine  # type: ignore[attr-defined]
    assert engine.saved == [("save", 1, tmp_path / "a chat.bin"), ("restore", 0, tmp_path / "a chat.bin"), ("erase", 0)]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "~", "x" * 300, " x", "a\nb", "\u202ex"])
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    for action in ("save", "restore"):
        answer = client(slot_save_path=tmp_path).post(f"/slots/0?action={action}", json={"filename": name})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "filename"
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    folder.mkdir()
    elsewhere.write_bytes(b"precious")
    (folder / "link").symlink_to(elsewhere)
    for action in ("save", "restore"):
        assert client(slot_save_path=folder).post(f"/slots/0?action={action}", json={"filename": "link"}).status_code == 400
    assert elsewhere.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/slots/2?action=erase", 400),
        ("/slots/-1?action=erase", 400),
        ("/slots/x?action=erase", 400),
        ("/slots/" + "9" * 5000 + "?action=erase", 400),
        ("/slots/0?action=burn", 400),
        ("/slots/0", 400),
        ("/slots/0?action=restore", 404),
    ],
)
def test_slots_and_actions_that_are_not(path: str, status: int, tmp_path: Path) -> None:
    assert client(slot_save_path=tmp_path).post(path, json={"filename": "none"}).status_code == status


def test_saving_needs_a_folder() -> None:
    assert client().post("/slots/0?action=erase").status_code == 501


def test_metrics_only_when_asked_for() -> None:
    answer = client().get("/metrics")
    assert (answer.status_code, answer.json()["error"]["type"]) == (501, "not_supported_error")


def test_metrics() -> None:
    http = client(FakeServed(busy=1), metrics=True)
    http.get("/health")
    http.get("/nothing")
    http.post("/slots/77?action=erase")
    samples = {
        (s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(http.get("/metrics").text) for s in f.samples
    }
    model = ("model", "fake")
    assert samples[("ggrun_slots_busy", model)] == 1
    assert samples[("ggrun_kv_used_tokens", model)] == 48
    assert samples[("ggrun_cached_tokens_total", model)] == 40
    assert samples[("llamacpp:predicted_tokens_seconds", model)] == 20
    assert samples[("llamacpp:tokens_predicted_total", model)] == 60
    route = {(dict(key[1:])["route"], dict(key[1:])["status"]) for key in samples if key[0] == "ggrun_http_requests_total"}
    assert route == {("/health", "200"), ("other", "404"), ("/slots/{slot}", "501")}
    assert samples[("ggrun_http_requests_open",)] == 1  # this one


def test_times_of_tokens() -> None:
    class Running:
        def __init__(self) -> None:
            self.state = "answer"
            self.timings = type("Timings", (), {"predicted_n": 0})()

    metrics = Metrics(FakeShelf(Settings()))  # type: ignore[arg-type]
    generation: Any = Running()
    watch = metrics.watch("fake")
    for n in (0, 1, 2, 3):
        generation.timings.predicted_n = n
        watch.seen(generation)
    for _ in range(2):
        generation.state = "done"
        watch.seen(generation)
    counts = {
        sample.name: sample.value
        for histogram in (metrics.first, metrics.between, metrics.whole)
        for family in histogram.collect()
        for sample in family.samples
        if sample.name.endswith("_count")
    }
    assert counts == {"ggrun_time_to_first_token_seconds_count": 1, "ggrun_inter_token_seconds_count": 2, "ggrun_answer_seconds_count": 1}
