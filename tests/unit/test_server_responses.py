"""OpenAI's responses: what a request asks, what becomes of pieces, what is kept."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from ggrun.server import responses
from ggrun.server.errors import ApiError
from ggrun.server.responses_events import Answer
from ggrun.server.responses_items import Item, named, shown
from ggrun.server.responses_request import ResponsesRequest, task_of
from ggrun.server.responses_store import ResponseStore, Stored
from ggrun.server.task import Call, Output, Text, Thought, TokenLog
from tests.unit.server_pieces import Script, bare_app, client, end, events_of

WEATHER = {"type": "function", "name": "weather", "description": "Of a town.", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "other"}


def task(**fields: Any) -> Any:
    return task_of(msgspec.convert({"input": "Hello", **fields}, ResponsesRequest))


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return list(task(input=list(items), **fields).messages)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        task(**fields)
    assert caught.value.status == 400
    return caught.value


# ---- requests


def test_an_items_type_may_be_null() -> None:
    assert messages({"type": None, "role": "user", "content": "a"}) == messages({"role": "user", "content": "a"})
    (item,) = named([msgspec.convert({"type": None, "role": "user", "content": "a"}, Item)])
    assert shown(item)["type"] == "message"


def test_text_and_instructions() -> None:
    assert task(instructions="Be brief.").messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def test_system_messages_in_front_are_one() -> None:
    made = messages(
        {"role": "developer", "content": "Second."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Third."}]},
        {"role": "user", "content": "Hello"},
        {"role": "developer", "content": "Later."},
        instructions="First.",
    )
    assert [(m["role"], m["content"]) for m in made] == [
        ("system", "First.\n\nSecond.\n\nThird."),
        ("user", "Hello"),
        ("system", "Later."),
    ]


def test_items_of_one_turn_are_one_message() -> None:
    made = messages(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "A tool."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"town": "Ulm"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Done."}]},
        {"role": "assistant", "content": "Rain."},
        {"role": "assistant", "content": "And sun."},
    )
    assert made == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "A tool.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}},
                {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "Done."},
        {"role": "assistant", "content": "And sun."},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"input": []}, "input", "missing"),
        ({"input": None}, "input", "missing"),
        ({"input": [{"type": "computer_call_output", "call_id": "x"}]}, "input[0].type", "computer_call_output"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]", "needs text"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "robot"),
        ({"input": [{"role": "user"}]}, "input[0].content", "content"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": ""}]}, "input[0].call_id", "call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output", "output"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type", "web_search"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "time"}}, "tool_choice.name", "time"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": [OTHER]}}, "tool_choice.tools", "'other'"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "mcp"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": "sometimes"}, "tool_choice", "sometimes"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "grammar"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "verbosity"),
        ({"background": True}, "background", "background"),
        ({"conversation": "conv_1"}, "conversation", "conversation"),
        ({"prompt": {"id": "x"}}, "prompt", "prompt"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, word: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert word in error.message


def test_settings_reach_the_task() -> None:
    made = task(
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "medium"},
        reasoning={"effort": "low", "summary": "auto"},
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        top_logprobs=2,
        truncation="auto",
        background=False,
        store=False,
    )
    function = {"name": "weather", "description": "Of a town.", "parameters": {"type": "object"}, "strict": True}
    assert made.tools == [{"type": "function", "function": function}]
    assert (made.tool_choice, made.parallel_tool_calls, made.truncate) == ("weather", False, True)
    assert made.output == Output("json_schema", {"type": "object"}, "text.format.schema")
    assert made.template == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    assert (made.n_predict, made.sampling, made.n_top) == (5, {"temperature": 0, "top_p": 0.5}, 2)


def test_what_is_not_asked_is_left_to_the_server() -> None:
    made = task()
    assert (made.n_predict, made.sampling, made.n_top, made.template, made.output, made.truncate) == (None, {}, -1, {}, None, False)
    assert (task(include=["message.output_text.logprobs"]).n_top, task(include=["reasoning.encrypted_content"]).n_top) == (0, -1)
    assert task(reasoning={"effort": "none"}).template == {"enable_thinking": False, "thinking": False}
    allowed = task(tools=[WEATHER, OTHER], tool_choice={"type": "allowed_tools", "mode": "required", "tools": [OTHER]})
    assert ([t["function"]["name"] for t in allowed.tools], allowed.tool_choice) == (["other"], "required")


# ---- events


def told(*pieces: Any, logprobs: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    answer = Answer({"id": "resp_1"}, logprobs)
    events = [json.loads(msgspec.json.encode(event)) for event in answer.opening()]
    for piece in pieces:
        events += [json.loads(msgspec.json.encode(event)) for event in answer.push(piece)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events, json.loads(msgspec.json.encode(answer.response))


def test_a_text_is_told_in_openais_order() -> None:
    events, response = told(Text(0, "Fi"), Text(0, "ne"), end())
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[2]["item"] | {"id": ""} == {"type": "message", "id": "", "status": "in_progress", "role": "assistant", "content": []}
    assert events[3]["part"]["text"] == ""
    assert [event["delta"] for event in events[4:6]] == ["Fi", "ne"]
    assert events[6]["text"] == events[7]["part"]["text"] == "Fine"
    assert len({event["item_id"] for event in events if "item_id" in event} | {events[2]["item"]["id"], events[8]["item"]["id"]}) == 1
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"] == response
    assert response["usage"] == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 10,
    }  # fmt: skip
    assert (response["status"], response["output"]) == ("completed", [events[8]["item"]])


def test_thoughts_text_and_calls_are_items_of_their_own() -> None:
    pieces = [
        Thought(0, "Hm"), Thought(0, "."), Text(0, "I call."), Call(0, 0, "", "call_a", "weather"), Call(0, 0, '{"a"'), Call(0, 0, ":1}"),
        Call(0, 1, "{}", "call_b", "time"),
    ]  # fmt: skip
    events, response = told(*pieces, end("tool_calls", thought=1))
    assert [(item["type"], item["status"]) for item in response["output"]] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"), ("function_call", "completed"),
    ]  # fmt: skip
    reasoning, _, first, second = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"a":1}')
    assert (second["call_id"], second["arguments"]) == ("call_b", "{}")
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[2:8] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done",
    ]  # fmt: skip
    assert names.count("output_item.added") == names.count("output_item.done") == 4
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["output_index"], event["arguments"]) for event in done] == [(2, '{"a":1}'), (3, "{}")]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    events, response = told(Text(0, "Fi"), end("length", n_dropped=4))
    assert events[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"
    assert (response["truncated"], response["dropped_tokens"]) == (True, 4)


def test_an_answer_without_a_word_has_an_empty_message() -> None:
    _, response = told(Text(0, ""), end())
    assert [part["text"] for item in response["output"] for part in item["content"]] == [""]


def test_log_probabilities() -> None:
    token = TokenLog(1, "Fi", b"Fi", -0.5, (TokenLog(2, "Fo", b"Fo", -1.0),))
    events, response = told(Text(0, "Fi", (token,)), Text(0, "", (token,)), end(), logprobs=True)
    log = {"token": "Fi", "bytes": [70, 105], "logprob": -0.5, "top_logprobs": [{"token": "Fo", "bytes": [70, 111], "logprob": -1.0}]}
    assert [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"] == [[log], [log]]
    assert response["output"][0]["content"][0]["logprobs"] == [log, log]


# ---- routes


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch, responses)


@pytest.fixture
def http(script: Script) -> Iterator[TestClient]:
    with client(bare_app(responses.ROUTES)) as made:
        yield made


def test_a_stream_and_a_whole_answer_say_the_same(http: TestClient, script: Script) -> None:
    script.pieces = [Thought(0, "Hm."), Text(0, "Fine."), end()]
    whole = http.post("/v1/responses", json={"input": "Hello", "model": "x"}).json()
    frames = events_of(http.post("/v1/responses", json={"input": "Hello", "stream": True}).text)
    assert all(name == json.loads(data)["type"] for name, data in frames)
    last = json.loads(frames[-1][1])["response"]

    def plain(response: dict[str, Any]) -> Any:
        return [[item["type"], item["content"]] for item in response["output"]], response["usage"], response["model"]

    assert plain(whole) == plain(last)
    assert whole["model"] == "scripted"
    assert all(answer.closed for answer in script.answers)


def test_a_response_goes_on_from_an_earlier_one(http: TestClient, script: Script) -> None:
    script.pieces = [Thought(0, "Hm."), Text(0, "One."), end()]
    first = http.post("/v1/responses", json={"input": "Count", "instructions": "Be brief."}).json()
    script.pieces = [Text(0, "Two."), end()]
    asked = {"input": "On", "previous_response_id": first["id"], "stream": True}
    second = json.loads(events_of(http.post("/v1/responses", json=asked).text)[-1][1])["response"]
    assert script.task.messages == [
        {"role": "user", "content": "Count"},
        {"role": "assistant", "content": "One.", "reasoning_content": "Hm."},
        {"role": "user", "content": "On"},
    ]
    http.post("/v1/responses", json={"input": "On", "previous_response_id": second["id"]})
    assert [m["content"] for m in script.task.messages or ()] == ["Count", "One.", "On", "Two.", "On"]
    assert http.get(f"/v1/responses/{second['id']}").json() == second
    assert http.delete(f"/v1/responses/{second['id']}").json() == {"id": second["id"], "object": "response", "deleted": True}
    assert http.get(f"/v1/responses/{second['id']}").status_code == 404
    gone = http.post("/v1/responses", json={"input": "On", "previous_response_id": second["id"]})
    assert (gone.status_code, gone.json()["error"]["param"]) == (400, "previous_response_id")


def test_items_may_be_referred_to(http: TestClient, script: Script) -> None:
    script.pieces = [Thought(0, "Hm."), Call(0, 0, "{}", "call_a", "weather"), end("tool_calls")]
    first = http.post("/v1/responses", json={"input": "Weather?"}).json()
    thought, call = first["output"]
    result = {"type": "function_call_output", "call_id": "call_a", "output": "rain"}
    references = [{"type": "item_reference", "id": thought["id"]}, {"id": call["id"]}]
    body = {"input": [{"role": "user", "content": "Weather?"}, *references, result]}
    http.post("/v1/responses", json=body)
    made = list(script.task.messages or ())
    http.post("/v1/responses", json={"input": [{"role": "user", "content": "Weather?"}, thought, call, result]})
    assert made == script.task.messages
    assert [message["role"] for message in made] == ["user", "assistant", "tool"]
    http.delete(f"/v1/responses/{first['id']}")
    gone = http.post("/v1/responses", json=body)
    assert (gone.status_code, gone.json()["error"]["param"]) == (400, "input[1].id")


def test_the_items_a_response_was_made_of(http: TestClient, script: Script) -> None:
    script.pieces = [Text(0, "One."), end()]
    first = http.post("/v1/responses", json={"input": "Count"}).json()
    more = [
        {"type": None, "role": "user", "content": [{"type": "input_text", "text": "On"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_a", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "rain"},
    ]
    second = http.post("/v1/responses", json={"input": more, "previous_response_id": first["id"]}).json()

    def items(query: str = "", id_: str = second["id"]) -> Any:
        return http.get(f"/v1/responses/{id_}/input_items{query}").json()

    [only] = items(id_=first["id"])["data"]
    content = [{"type": "input_text", "text": "Count"}]
    assert only == {"id": only["id"], "type": "message", "status": "completed", "role": "user", "content": content}
    told = items("?order=asc")
    assert (told["object"], told["has_more"], told["first_id"], told["last_id"]) == ("list", False, only["id"], told["data"][-1]["id"])
    assert told["data"][:2] == [only, first["output"][0] | {"content": [{"type": "output_text", "text": "One.", "annotations": []}]}]
    assert told["data"][3] == {**more[1], "status": "completed"}
    assert [item["type"] for item in told["data"][2:]] == ["message", "function_call", "function_call_output"]
    assert items()["data"] == told["data"][::-1]
    page = items("?order=asc&limit=2")
    assert (page["data"], page["has_more"]) == (told["data"][:2], True)
    assert items(f"?order=asc&limit=3&after={page['last_id']}")["data"] == told["data"][2:]
    none = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert items(f"?order=asc&after={told['last_id']}") == none
    for query, param in (("?limit=0", "limit"), ("?limit=x", "limit"), ("?order=up", "order"), ("?after=x", "after")):
        assert items(query)["error"]["param"] == param
    assert http.get("/v1/responses/x/input_items").status_code == 404


def test_store_false_is_not_kept(http: TestClient) -> None:
    made = http.post("/v1/responses", json={"input": "Hello", "store": False}).json()
    assert made["store"] is False
    assert http.get(f"/v1/responses/{made['id']}").status_code == 404


def test_an_answer_that_breaks_off_ends_with_failed(http: TestClient, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.pieces = [Text(0, "Fi"), RuntimeError("boom /secret")]
    frames = events_of(http.post("/v1/responses", json={"input": "Hello", "stream": True}).text)
    name, data = frames[-1]
    response = json.loads(data)["response"]
    assert (name, response["status"], response["error"]["code"]) == ("response.failed", "failed", "server_error")
    assert "secret" not in data
    assert "boom" in capsys.readouterr().err
    assert http.get(f"/v1/responses/{response['id']}").status_code == 404
    assert http.post("/v1/responses", json={"input": "Hello"}).status_code == 500


def test_a_refusal_of_a_stream_has_its_status(http: TestClient) -> None:
    refused = http.post("/v1/responses", json={"input": "Hello", "stream": True, "background": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_responses=3, max_bytes=100)
    for name in "abc":
        store.put(name, Stored(b"", (), 10))
    assert store.get("a")
    store.put("d", Stored(b"", (), 10))
    assert [name for name in "abcd" if store.get(name)] == ["a", "c", "d"]
    store.put("e", Stored(b"", (), 85))
    assert [name for name in "acde" if store.get(name)] == ["d", "e"]
    store.put("f", Stored(b"", (), 101))
    assert len(store) == 0
    store.put("g", Stored(b"", (), 100))
    assert (store.remove("g"), store.remove("g"), len(store)) == (True, False, 0)


def test_output_items_can_be_sent_back() -> None:
    _, response = told(Thought(0, "Hm."), Call(0, 0, "{}", "call_a", "weather"), end("tool_calls"))
    made = messages({"role": "user", "content": "Hello"}, *response["output"])
    assert made[1]["reasoning_content"] == "Hm."
    assert made[1]["tool_calls"][0]["id"] == "call_a"
    assert msgspec.convert(response["output"], list[Item])
