"""One answer, with a thought, a text and a call, says the same in every API, whole and streamed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from ggrun.server import messages, ollama, openai_chat, responses
from tests.unit.scripted import OneModel, scripted
from tests.unit.server_pieces import bare_app, events_of
from tests.unit.test_answering_parts import ADD, CALL, THINKER

SAID = ("Hmm.", "I add.", "add", {"a": 1})
HELLO = [{"role": "user", "content": "Hello"}]
FUNCTION = ADD["function"]


class Shelf(OneModel):
    def models(self) -> list[Any]:
        return []


def _chat(answer: Any) -> Any:
    message = answer["choices"][0]["message"]
    function = message["tool_calls"][0]["function"]
    return message["reasoning_content"], message["content"], function["name"], json.loads(function["arguments"])


def _chat_stream(body: str) -> Any:
    deltas = [json.loads(data)["choices"][0]["delta"] for _, data in events_of(body) if data != "[DONE]"]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    joined = ["".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content")]
    return (*joined, "".join(call.get("name") or "" for call in calls), json.loads("".join(call.get("arguments", "") for call in calls)))


def _response(answer: Any) -> Any:
    thought, text, call = answer["output"]
    return thought["content"][0]["text"], text["content"][0]["text"], call["name"], json.loads(call["arguments"])


def _response_stream(body: str) -> Any:
    events = [json.loads(data) for _, data in events_of(body)]

    def deltas(kind: str) -> str:
        return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")

    assert _response(events[-1]["response"]) == SAID
    name = next(event["item"]["name"] for event in events if event.get("item", {}).get("type") == "function_call")
    return deltas("reasoning_text"), deltas("output_text"), name, json.loads(deltas("function_call_arguments"))


def _message(answer: Any) -> Any:
    thought, text, use = answer["content"]
    return thought["thinking"], text["text"], use["name"], use["input"]


def _message_stream(body: str) -> Any:
    events = [json.loads(data) for _, data in events_of(body)]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    joined = ["".join(delta.get(name, "") for delta in deltas) for name in ("thinking", "text", "partial_json")]
    name = next(event["content_block"]["name"] for event in events if event.get("content_block", {}).get("type") == "tool_use")
    return joined[0], joined[1], name, json.loads(joined[2])


def _ollama(answer: Any) -> Any:
    message = answer["message"]
    function = message["tool_calls"][0]["function"]
    return message["thinking"], message["content"], function["name"], function["arguments"]


def _ollama_stream(body: str) -> Any:
    said = [json.loads(line)["message"] for line in body.splitlines()]
    function = next(part["tool_calls"][0]["function"] for part in said if "tool_calls" in part)
    thought, text = ("".join(part.get(name, "") for part in said) for name in ("thinking", "content"))
    return thought, text, function["name"], function["arguments"]


@pytest.mark.parametrize(
    ("path", "body", "whole", "stream"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "tools": [ADD]}, _chat, _chat_stream),
        ("/v1/responses", {"input": "Hello", "tools": [{"type": "function", **FUNCTION}]}, _response, _response_stream),
        (
            "/v1/messages",
            {"messages": HELLO, "max_tokens": 999, "tools": [{"name": FUNCTION["name"], "input_schema": FUNCTION["parameters"]}]},
            _message,
            _message_stream,
        ),
        ("/api/chat", {"model": "x", "messages": HELLO, "tools": [ADD]}, _ollama, _ollama_stream),
    ],
)
def test_a_thought_a_text_and_a_call(path: str, body: dict[str, Any], whole: Callable[..., Any], stream: Callable[..., Any]) -> None:
    shelf = Shelf(scripted(f"<think>Hmm.</think>I add.{CALL}", source=THINKER))
    routes = [*openai_chat.ROUTES, *responses.ROUTES, *messages.ROUTES, *ollama.ROUTES]
    with TestClient(bare_app(routes, shelf), base_url="http://127.0.0.1:8080") as http:
        answer = http.post(path, json={**body, "stream": False})
        assert answer.status_code == 200, answer.text
        assert whole(answer.json()) == SAID
        assert stream(http.post(path, json={**body, "stream": True}).text) == SAID
    assert shelf.n_used == 0
    prompts = [submitted["ids"] for submitted in shelf.model.engine.submitted]
    assert prompts[0] == prompts[1]
