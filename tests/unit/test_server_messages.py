"""Anthropic's messages: what a request asks, and what becomes of pieces."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from ggrun.server import messages
from ggrun.server.arguments import read_arguments
from ggrun.server.errors import ApiError
from ggrun.server.messages_events import Answer
from ggrun.server.messages_request import CountRequest, MessagesRequest, task_of
from ggrun.server.task import Call, Output, Text, Thought
from tests.unit.server_pieces import Script, bare_app, client, end, events_of

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"name": "weather", "description": "Of a town.", "input_schema": {"type": "object"}}


def task(**fields: Any) -> Any:
    return task_of(msgspec.convert({"messages": HELLO, "max_tokens": 9, **fields}, MessagesRequest))


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_system_and_blocks() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=65abc;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be kind."},
    ]
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A letter."}, "title": "Mail"}
    made = task(system=system, messages=[user({"type": "text", "text": "Read"}, document)])
    assert made.messages == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Read\nMail\n\nA letter."},
    ]
    assert task(system="x-anthropic-billing-header: a=1; cch=defa0;You are kind.").messages[0]["content"] == "You are kind."
    assert task(system="Be brief.").messages[0] == {"role": "system", "content": "Be brief."}
    assert [m["role"] for m in task(system=[]).messages] == ["user"]


def test_tools_thoughts_and_results() -> None:
    made = task(
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "A tool.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "zzz"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": "Ulm"}},
                    {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
                ],
            },
            user(
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "no town"}], "is_error": True},
                {"type": "text", "text": "And now?"},
            ),
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t3", "name": "weather", "input": {}}]},
            user({"type": "tool_result", "tool_use_id": "t3"}),
        ]
    )
    assert made.messages == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "A tool.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}},
                {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no town"},
        {"role": "user", "content": "And now?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "t3", "type": "function", "function": {"name": "weather", "arguments": {}}}],
        },
        {"role": "tool", "tool_call_id": "t3", "content": ""},
    ]
    assert not made.prefill


def test_a_last_message_of_the_assistant_is_continued() -> None:
    made = task(messages=[*HELLO, {"role": "assistant", "content": "The best answer is ("}])
    assert made.prefill
    assert made.messages[-1] == {"role": "assistant", "content": "The best answer is ("}
    assert task(messages=[{"role": "user", "content": ""}]).messages == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": [user({"type": "image", "source": {"type": "url", "url": "x"}})]}, "messages[0].content[0]", "image"),
        ({"messages": [user({"type": "tool_use", "id": "a", "name": "b", "input": {}})]}, "messages[0].content[0]", "tool_use"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text", "needs text"),
        ({"messages": [user({"type": "document", "source": {"type": "base64"}})]}, "messages[0].content[0].source", "plain text"),
        (
            {"messages": [user({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]})]},
            "messages[0].content[0].content[0]",
            "image",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]},
            "messages",
            "tool_result",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type", "image"),
        ({"tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1].type", "web_search_20250305"),
        ({"tools": [{"name": "weather"}]}, "tools[0].input_schema", "input_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "time"}}, "tool_choice.name", "time"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "none"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers", "mcp_servers"),
        ({"container": "c"}, "container", "container"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management", "clear_tool_uses"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(ApiError) as caught:
        task(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert word in caught.value.message


def test_settings_reach_the_task() -> None:
    made = task(
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        stop_sequences=["a", "b"],
        temperature=0.5,
        top_k=3,
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    function = {"name": "weather", "description": "Of a town.", "parameters": {"type": "object"}}
    assert made.tools == [{"type": "function", "function": function}]
    assert (made.tool_choice, made.parallel_tool_calls) == ("required", False)
    assert made.thought_limit == 2000
    assert made.template == {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}
    assert made.output == Output("json_schema", {"type": "object"}, "output_config.format.schema")
    assert (made.stop, made.sampling, made.n_predict) == (("a", "b"), {"temperature": 0.5, "top_k": 3}, 9)
    plain = task()
    assert (plain.template, plain.output, plain.sampling, plain.tool_choice, plain.stop) == ({}, None, {}, "auto", ())
    assert task(thinking={"type": "disabled"}).template == {"enable_thinking": False, "thinking": False}
    assert task(tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"}).tool_choice == "weather"
    assert task_of(msgspec.convert({"messages": HELLO}, CountRequest)).n_predict is None


# ---- events


def told(*pieces: Any, max_tokens: int = 9) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = Answer("m", 7, max_tokens)
    events = [json.loads(msgspec.json.encode(event)) for event in answer.opening()]
    for piece in pieces:
        events += [json.loads(msgspec.json.encode(event)) for event in answer.push(piece)]
    return events, answer.message


def test_blocks_are_told_in_anthropics_order() -> None:
    pieces = [
        Thought(0, "Hm"), Thought(0, "."), Text(0, "I "), Text(0, "look."), Call(0, 0, "", "c1", "weather"), Call(0, 0, '{"town"'),
        Call(0, 0, ': "Ulm"}'), Call(0, 1, "", "c2", "time"),
    ]  # fmt: skip
    events, message = told(*pieces, end("tool_calls", thought=2))
    assert [(event["type"].removeprefix("content_block_"), event.get("index")) for event in events] == [
        ("message_start", None), ("ping", None),
        ("start", 0), ("delta", 0), ("delta", 0), ("delta", 0), ("stop", 0),
        ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1),
        ("start", 2), ("delta", 2), ("delta", 2), ("stop", 2),
        ("start", 3), ("stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    assert events[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert events[5]["delta"] == {"type": "signature_delta", "signature": ""}
    assert events[11]["content_block"] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}
    assert events[12]["delta"] == {"type": "input_json_delta", "partial_json": '{"town"'}
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"town": "Ulm"}},
        {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 3}
    assert events[-2]["usage"] == message["usage"] == usage | {"output_tokens_details": {"thinking_tokens": 2}}


@pytest.mark.parametrize(
    ("piece", "max_tokens", "reason", "word"),
    [
        (end(), 9, "end_turn", None),
        (end(stop_word="###"), 9, "stop_sequence", "###"),
        (end("length"), 3, "max_tokens", None),
        (end("length"), 9, "model_context_window_exceeded", None),
        (end("tool_calls"), 9, "tool_use", None),
    ],
)
def test_why_an_answer_ended(piece: Any, max_tokens: int, reason: str, word: str | None) -> None:
    events, message = told(piece, max_tokens=max_tokens)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, word)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": word}
    assert message["content"] == [{"type": "text", "text": ""}]


def test_arguments_that_are_no_object_are_not_passed_off_as_one() -> None:
    assert read_arguments(" ") == {}
    for text in ('{"town": "U', "[1]", "[" * 100_000, '{"a": "\\ud800"}', '{"a": NaN}'):
        assert read_arguments(text) == {"INVALID_JSON": text}


# ---- routes


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch, messages)


@pytest.fixture
def http(script: Script) -> Iterator[TestClient]:
    with client(bare_app(messages.ROUTES)) as made:
        yield made


def test_a_whole_answer_and_a_stream(http: TestClient, script: Script) -> None:
    script.pieces = [Text(0, "Fine."), end()]
    body = {"messages": HELLO, "max_tokens": 9, "model": "x"}
    whole = http.post("/v1/messages", json=body).json()
    assert (whole["content"], whole["model"], whole["role"]) == ([{"type": "text", "text": "Fine."}], "scripted", "assistant")
    frames = events_of(http.post("/v1/messages", json={**body, "stream": True}).text)
    assert all(name == json.loads(data)["type"] for name, data in frames)
    assert frames[-1][0] == "message_stop"
    assert all(answer.closed for answer in script.answers)


def test_errors_are_in_anthropics_shape(http: TestClient, script: Script) -> None:
    missing = http.post("/v1/messages", json={"messages": HELLO})
    assert missing.status_code == 400
    assert missing.json()["type"] == "error"
    assert missing.json()["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in missing.json()["error"]["message"]
    assert http.post("/v1/messages", content=b"{}").json()["type"] == "error"
    assert http.get("/v1/messages").json()["type"] == "error"
    script.pieces = [Text(0, "Fi"), RuntimeError("boom")]
    frames = events_of(http.post("/v1/messages", json={"messages": HELLO, "max_tokens": 9, "stream": True}).text)
    assert frames[-1][0] == "error"
    assert json.loads(frames[-1][1])["error"]["type"] == "api_error"
