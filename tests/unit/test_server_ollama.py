"""Ollama's chat and generate: what a request asks, what becomes of pieces, what is told of models."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from ggrun.plan.ledger import Ledger, Line
from ggrun.server import ollama, ollama_models
from ggrun.server.errors import ApiError
from ggrun.server.ollama_answers import Lines, joined
from ggrun.server.ollama_request import ChatRequest, GenerateRequest, chat_task, generate_task, known_name
from ggrun.server.shelf import Defaults, ModelState
from ggrun.server.task import Call, Output, Text, Thought, TokenLog
from tests.conftest import EMBEDDED
from tests.unit.scripted import template, tokenizer
from tests.unit.server_pieces import NoShelf, Script, bare_app, client, end

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> Any:
    return chat_task(msgspec.convert({"model": "m", "messages": HELLO, **fields}, ChatRequest))


def generate(**fields: Any) -> Any:
    return generate_task(msgspec.convert({"model": "m", "prompt": "Hello", **fields}, GenerateRequest))


def test_messages() -> None:
    made = chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?", "images": []},
            {
                "role": "assistant",
                "content": "",
                "thinking": "A tool.",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ],
        tools=[WEATHER],
    )
    assert made.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "A tool.",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}],
        },
        {"role": "tool", "content": "rain", "name": "weather"},
    ]
    assert made.tools == [WEATHER]


def test_options_reach_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "temperature": 0, "top_k": 40.0, "seed": 7, "repeat_penalty": 1.2, "num_predict": -2, "num_keep": 4, "stop": ["a", ""],
        "num_ctx": 64.0, "num_gpu": 1, "tfs_z": 1.0, "min_pp": 3, "min_p": None,
    }  # fmt: skip
    made = chat(options=options, format={"type": "object"}, think="low", top_logprobs=2, truncate=True, shift=False)
    assert made.sampling == {"temperature": 0, "top_k": 40, "seed": 7, "repeat_penalty": 1.2}
    assert isinstance(made.sampling["top_k"], int)
    assert (made.n_predict, made.keep, made.stop, made.n_top, made.truncate, made.shift) == (-1, 4, ("a",), 2, True, False)
    assert made.output == Output("json_schema", {"type": "object"}, "format")
    assert made.template == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    told = capsys.readouterr().err
    assert "num_gpu" in told
    assert "min_pp" in told
    plain = chat(format="")
    assert (plain.sampling, plain.n_predict, plain.output, plain.n_top, plain.template, plain.shift) == ({}, None, None, -1, {}, None)
    assert (chat(format="json").output, chat(think=False).template["enable_thinking"]) == (Output("json_object", param="format"), False)
    assert (chat(options={"stop": "x"}).stop, chat(logprobs=True).n_top, chat(options={"num_predict": 3}).n_predict) == (("x",), 0, 3)


def test_prompts() -> None:
    assert generate(system="Be brief.").messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    raw = generate(raw=True)
    assert (raw.messages, raw.prompt) == (None, "Hello")
    gap = generate(suffix="end")
    assert (gap.messages, gap.prompt, gap.suffix) == (None, "Hello", "end")


@pytest.mark.parametrize(
    ("make", "fields", "param", "word"),
    [
        (chat, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images", "images"),
        (chat, {"tools": [{"type": "web", "function": {"name": "x"}}]}, "tools[0].type", "web"),
        (chat, {"format": "xml"}, "format", "xml"),
        (chat, {"think": "a lot"}, "think", "a lot"),
        (chat, {"options": {"tfs_z": 0.5}}, "options.tfs_z", "tfs_z"),
        (chat, {"options": {"penalize_newline": False}}, "options.penalize_newline", "newline"),
        (chat, {"options": {"num_predict": "x"}}, "options.num_predict", "int"),
        (chat, {"options": {"stop": [1]}}, "options.stop[0]", "str"),
        (generate, {"template": "{{ .Prompt }}"}, "template", "template"),
        (generate, {"raw": True, "system": "x"}, "raw", "raw"),
        (generate, {"images": ["x"]}, "images", "images"),
        (generate, {"width": 64}, "width", "width"),
    ],
)
def test_what_is_refused_is_named(make: Any, fields: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(ApiError) as caught:
        make(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert word in caught.value.message


def test_a_tag_is_left_out_where_the_name_has_none() -> None:
    assert known_name("a:latest", ["a", "b"]) == "a"
    assert known_name("a:latest", ["a", "a:latest"]) == "a:latest"
    assert [known_name(name, ["a"]) for name in ("a", "c:latest", "a:8b")] == ["a", "c:latest", "a:8b"]


# ---- answers


def lines(*pieces: Any, chat: bool = True, logprobs: bool = False) -> list[dict[str, Any]]:
    made = Lines("m", chat, logprobs, 0, 5)
    return [json.loads(msgspec.json.encode(line)) for piece in pieces for line in made.push(piece)]


def test_lines_of_a_conversation() -> None:
    pieces = [
        Thought(0, "Hm."), Text(0, "I look."), Call(0, 0, '{"town":', "c1", "weather"), Call(0, 0, ' "Ulm"}'), Call(0, 1, "", "c2", "time"),
    ]  # fmt: skip
    made = lines(*pieces, end("tool_calls"))
    messages = [line["message"] for line in made]
    assert messages == [
        {"role": "assistant", "content": "", "thinking": "Hm."},
        {"role": "assistant", "content": "I look."},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"town": "Ulm"}}},
        ]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c2", "function": {"index": 1, "name": "time", "arguments": {}}}]},
        {"role": "assistant", "content": ""},
    ]  # fmt: skip
    assert [line["done"] for line in made] == [False] * 4 + [True]
    last = made[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"], last["load_duration"]) == ("stop", 7, 3, 5)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (50_000_000, 20_000_000)
    assert last["total_duration"] > 0
    whole = joined(made)
    assert whole["message"]["content"] == "I look."
    assert whole["message"]["thinking"] == "Hm."
    assert [call["function"]["name"] for call in whole["message"]["tool_calls"]] == ["weather", "time"]
    assert whole["done"]


def test_lines_of_a_prompt() -> None:
    token = TokenLog(4, "Fi", b"Fi", -0.5, (TokenLog(5, "Fo", b"Fo", -1.0),))
    made = lines(Text(0, "Fi", (token,)), Text(0, "", (token,)), Text(0, "ne"), end("length", n_dropped=3), chat=False)
    assert [line["response"] for line in made] == ["Fi", "ne", ""]
    assert "logprobs" not in made[0]
    assert (made[-1]["done_reason"], made[-1]["truncated"], made[-1]["dropped_tokens"]) == ("length", True, 3)
    assert joined(made)["response"] == "Fine"
    told = lines(Text(0, "Fi", (token,)), Text(0, "", (token,)), end(), chat=False, logprobs=True)
    log = {"token": "Fi", "logprob": -0.5, "bytes": [70, 105], "top_logprobs": [{"token": "Fo", "logprob": -1.0, "bytes": [70, 111]}]}
    assert joined(told)["logprobs"] == [log, log]


# ---- routes


class Shelf(NoShelf):
    """One model, open, of which the header and the vocabulary are real."""

    def __init__(self) -> None:
        ledger = Ledger((Line("CPU", "weights", "", 20), Line("CUDA0", "weights", "", 10)))
        self.engine = SimpleNamespace(tokenizer=tokenizer(), chat_template=template(), n_ctx=512, plan=SimpleNamespace(ledger=ledger))
        self.unloaded: list[str | None] = []
        self.model = SimpleNamespace(name="pydoc", engine=self.engine, defaults=Defaults({"temperature": 0.5}))

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Any]:
        yield self.model

    async def unload(self, name: str | None) -> None:
        self.unloaded.append(name)

    def models(self) -> list[ModelState]:
        return [ModelState("pydoc", ("toy",), EMBEDDED, "loaded", 1, self.model), ModelState("gone", (), EMBEDDED / "x", "failed", 1)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch, ollama)


@pytest.fixture
def http(script: Script) -> Iterator[TestClient]:
    shelf = Shelf()
    script.model = shelf.model
    with client(bare_app([*ollama.ROUTES, *ollama_models.ROUTES], shelf)) as made:
        yield made


def test_a_stream_is_the_default(http: TestClient, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.pieces = [Text(0, "Fi"), Text(0, "ne"), end()]
    streamed = http.post("/api/chat", json={"model": "toy:latest", "messages": HELLO, "options": {"num_ctx": 99}})
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    made = [json.loads(line) for line in streamed.text.splitlines()]
    assert "".join(line["message"]["content"] for line in made) == "Fine"
    assert made[-1]["model"] == "pydoc"
    whole = http.post("/api/chat", json={"model": "toy", "messages": HELLO, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": "Fine"}
    assert all(answer.closed for answer in script.answers)
    assert "num_ctx" in capsys.readouterr().err


def test_a_prompt_goes_on_from_a_context(http: TestClient, script: Script) -> None:
    token = TokenLog(9, "Fine", b"Fine", -0.5)
    script.pieces = [Text(0, "Fine", (token,)), end()]
    made = http.post("/api/generate", json={"model": "toy", "prompt": "Hello", "stream": False}).json()
    assert made["context"][:8] == [1, 2, 3, 4, 5, 6, 7, 9]
    assert len(made["context"]) == 9  # and the token that ended it
    http.post("/api/generate", json={"model": "toy", "prompt": "On", "context": made["context"]})
    *context, text = script.task.prompt or ()
    assert (context, script.task.messages) == (made["context"], None)
    assert isinstance(text, str)
    assert "On" in text
    assert "Hello" not in text
    assert "context" not in http.post("/api/generate", json={"model": "toy", "prompt": "x", "raw": True, "stream": False}).json()


def test_nothing_loads_the_model(http: TestClient, script: Script) -> None:
    loaded = http.post("/api/generate", json={"model": "toy", "keep_alive": 300}).json()
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    assert http.post("/api/chat", json={"model": "toy", "messages": [], "stream": False}).json()["message"]["content"] == ""
    assert script.tasks == []


def test_a_model_is_unloaded_for_a_client_that_wants_it(http: TestClient, script: Script) -> None:
    shelf = http.app.state.shelf
    gone = http.post("/api/generate", json={"model": "pydoc:latest", "keep_alive": 0}).json()
    assert (gone["done"], gone["done_reason"], shelf.unloaded) == (True, "unload", ["pydoc"])
    assert http.post("/api/generate", json={"model": "other", "keep_alive": 0}).status_code == 404
    script.pieces = [Text(0, "Fine"), end()]
    for body in ({"keep_alive": "5m"}, {"keep_alive": -1}, {}):
        http.post("/api/chat", json={"model": "toy", "messages": HELLO, **body})
    assert shelf.unloaded == ["pydoc"]
    http.post("/api/chat", json={"model": "toy", "messages": HELLO, "keep_alive": "0s"})
    assert shelf.unloaded == ["pydoc", "toy"]
    assert not http.app.state.unloading


def test_errors_are_in_ollamas_shape(http: TestClient, script: Script) -> None:
    refused = http.post("/api/chat", json={"model": "toy", "messages": HELLO, "format": "xml"})
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    assert "model" in http.post("/api/chat", json={"messages": HELLO}).json()["error"]
    for path in ("pull", "push", "create", "copy", "delete", "blobs/x"):
        made = http.request("DELETE" if path == "delete" else "POST", f"/api/{path}", json={"model": "x"})
        assert made.status_code == 400
        assert f"/api/{path} is not supported" in made.json()["error"]
    script.pieces = [Text(0, "Fi"), RuntimeError("boom")]
    last = json.loads(http.post("/api/chat", json={"model": "toy", "messages": HELLO}).text.splitlines()[-1])
    assert list(last) == ["error"]


def test_what_is_told_of_models(http: TestClient) -> None:
    good, bad = http.get("/api/tags").json()["models"]
    assert (good["name"], good["details"]["format"], bad["name"]) == ("pydoc", "gguf", "gone")
    assert good["size"] == EMBEDDED.stat().st_size
    assert len(good["digest"]) == 64
    assert good["details"]["family"]
    [running] = http.get("/api/ps").json()["models"]
    assert (running["name"], running["size"], running["size_vram"], running["context_length"]) == ("pydoc", 30, 10, 512)
    shown = http.post("/api/show", json={"model": "toy:latest"}).json()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] > 0
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert shown["parameters"].split() == ["temperature", "0.5"]
    assert "completion" in shown["capabilities"]
    verbose = http.post("/api/show", json={"name": "pydoc", "verbose": True}).json()
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == tokenizer().n_vocab
    assert http.post("/api/show", json={"model": "other"}).status_code == 404
    assert http.post("/api/show", json={}).status_code == 400
    assert http.post("/api/show", json={"model": "gone"}).status_code == 500
    assert http.get("/api/version").json()["version"].count(".") == 2
