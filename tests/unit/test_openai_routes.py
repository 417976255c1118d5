"""OpenAI's completions and llama.cpp's: what a request becomes, and the shape of whole and streamed answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from ggrun.server import native_completion, openai_chat, openai_completions
from ggrun.server.body import decoded
from ggrun.server.chat_messages import read_messages
from ggrun.server.errors import ApiError
from ggrun.server.openai_chat import ChatRequest, task_of
from ggrun.server.openai_completions import CompletionRequest, tasks_of
from tests.unit.scripted import OneModel, scripted, tokenizer
from tests.unit.server_pieces import bare_app, events_of
from tests.unit.test_answering_parts import ADD, CALL, THINKER

HELLO = [{"role": "user", "content": "Hello"}]
ROUTES = [*openai_chat.ROUTES, *openai_completions.ROUTES, *native_completion.ROUTES]


@contextmanager
def served(model: Any) -> Iterator[TestClient]:
    with TestClient(bare_app(ROUTES, OneModel(model)), base_url="http://127.0.0.1:8080") as http:
        yield http


def post(model: Any, path: str, body: dict[str, Any]) -> Any:
    with served(model) as http:
        response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(model: Any, path: str, body: dict[str, Any]) -> list[Any]:
    with served(model) as http:
        response = http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [data for _, data in events_of(response.text)]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def task(**fields: Any) -> Any:
    body = {"messages": HELLO, **fields}
    return task_of(decoded(json.dumps(body).encode(), ChatRequest))


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        task(**fields)
    assert caught.value.status == 400
    return caught.value


# ---- what a request becomes


def test_every_sampling_field_arrives() -> None:
    fields = {
        "seed": 3, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "top_n_sigma": 2.0, "xtc_probability": 0.2,
        "xtc_threshold": 0.3, "dynatemp_range": 0.1, "dynatemp_exponent": 2.0, "repeat_penalty": 1.2, "repeat_last_n": 5,
        "presence_penalty": 0.4, "frequency_penalty": 0.3, "dry_multiplier": 0.7, "dry_base": 1.5, "dry_allowed_length": 3,
        "dry_penalty_last_n": 9, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "ignore_eos": True,
    }  # fmt: skip
    model = scripted("x")
    post(model, "/v1/chat/completions", {"messages": HELLO, **fields, "samplers": "kt", "dry_sequence_breakers": ["a"]})
    sampling = model.engine.submitted[0]["sampling"]
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert sampling.samplers == ("top_k", "temperature")
    assert sampling.dry_sequence_breakers == ("a",)


@pytest.mark.parametrize(("seed", "used"), [(-2, 2**64 - 2), (-(2**63), 2**63), (5, 5), (-1, -1)])
def test_seeds_may_be_negative(seed: int, used: int) -> None:
    model = scripted("x")
    post(model, "/v1/chat/completions", {"messages": HELLO, "seed": seed})
    assert model.engine.submitted[0]["sampling"].seed == used


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"15": 1, "16": -100}, ((15, 1.0), (16, -100.0))),
        ([[15, 1.5], [16, False]], ((15, 1.5), (16, float("-inf")))),
        ([["Hello", 2]], tuple((id_, 2.0) for id_ in tokenizer().encode("Hello", add_special=False))),
    ],
)
def test_biases_in_all_their_forms(given: Any, want: Any) -> None:
    model = scripted("x")
    post(model, "/v1/chat/completions", {"messages": HELLO, "logit_bias": given})
    assert model.engine.submitted[0]["sampling"].logit_bias == want


@pytest.mark.parametrize("given", [[[1]], [[1, 2, 3]], [[1, "x"]], [[1.5, 1]], [[1, True]]])
def test_biases_that_are_none(given: Any) -> None:
    assert refused(logit_bias=given).param == "logit_bias"


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"n_predict": 7}, 7),
        ({"max_tokens": -1}, -1),
        ({"max_tokens": 0}, 0),
    ],
)
def test_limits(fields: dict[str, Any], want: int | None) -> None:
    assert task(**fields).n_predict == want


@pytest.mark.parametrize(("given", "want"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ()), ("", ()), ([], ())])
def test_stop_words(given: Any, want: Any) -> None:
    assert task(stop=given).stop == want


def test_what_reaches_the_template() -> None:
    assert task(reasoning_effort="low").template["reasoning_effort"] == "low"
    assert task(reasoning_effort="none").template["enable_thinking"] is False
    assert task(reasoning_effort="high", chat_template_kwargs={"x": 1, "enable_thinking": False}).template["enable_thinking"] is False
    assert task(reasoning_format="none").reasoning is False
    assert task(reasoning_format="deepseek").reasoning is True
    assert task(thinking_budget_tokens=5).thought_limit == task(reasoning_budget_tokens=5).thought_limit == 5
    assert (task(reasoning_budget=-1).thought_limit, task().thought_limit) == (-1, None)
    assert task().reasoning is None


@pytest.mark.parametrize(
    ("fields", "kind", "value", "param"),
    [
        ({"response_format": {"type": "text"}}, None, None, None),
        ({"response_format": {"type": "json_object"}}, "json_object", None, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {"enum": [1]}}}, "json_schema", {"enum": [1]}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}, "strict": True}}},
            "json_schema",
            {"type": "null"},
            "response_format.json_schema.schema",
        ),
        ({"json_schema": {"type": "string"}}, "json_schema", {"type": "string"}, "json_schema"),
        ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"', "grammar"),
    ],
)
def test_forms_of_answers(fields: dict[str, Any], kind: str | None, value: Any, param: str | None) -> None:
    output = task(**fields).output
    assert (output and output.kind, output and output.value, output and output.param) == (kind, value, param)


def test_tools_and_choices() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    asked = task(tools=[ADD, other], tool_choice={"type": "function", "function": {"name": "other"}}, parallel_tool_calls=False)
    assert asked.tools == [ADD, other]
    assert (asked.tool_choice, asked.parallel_tool_calls) == ("other", False)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}}
    asked = task(tools=[ADD, other], tool_choice=allowed)
    assert (asked.tools, asked.tool_choice) == ([ADD], "required")
    old = task(functions=[ADD["function"]], function_call={"name": "add"})
    assert (old.tools, old.tool_choice, old.parallel_tool_calls) == ([ADD], "add", False)


def test_a_tools_type_may_be_left_out_or_null() -> None:
    function = ADD["function"]
    assert task(tools=[{"function": function}]).tools == task(tools=[{"type": None, "function": function}]).tools == [ADD]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [ADD, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"reasoning_effort": "banana"}, "reasoning_effort"),
        ({"tools": [ADD], "functions": [ADD["function"]]}, "functions"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "custom", "custom": {"name": "no"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "perhaps"}, "tool_choice"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_format": "deepseek-new"}, "reasoning_format"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"t_max_predict_ms": 5}, "t_max_predict_ms"),
        ({"min_keep": 3}, "min_keep"),
        ({"post_sampling_probs": True}, "post_sampling_probs"),
        ({"n": 1000}, "n"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_fields_without_meaning_are_accepted() -> None:
    task(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", prompt_cache_key="k", safety_identifier="s", modalities=["text"],
        verbosity="medium", id_slot=3, n_cache_reuse=256, prediction={"type": "content", "content": "x"}, min_keep=0, lora=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [5]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": []}]}, "messages[0].content[0]"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[0].tool_call_id"),
        ({"role": "assistant", "content": "x", "reasoning_content": []}, "messages[0].reasoning_content"),
    ],
)
def test_messages_that_are_none(message: dict[str, Any], path: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_messages([message])
    assert caught.value.param == path


def test_older_and_others_messages_are_read() -> None:
    messages = read_messages(
        [
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}},
            {"role": "function", "name": "add", "content": "3"},
            {"role": "assistant", "refusal": "No."},
            {"role": "assistant", "content": "x", "reasoning": "because"},
        ]
    )
    assert messages[0]["tool_calls"][0]["function"]["name"] == "add"
    assert (messages[1]["role"], messages[1]["name"]) == ("tool", "add")
    assert messages[2] == {"role": "assistant", "content": "No."}
    assert messages[3]["reasoning_content"] == "because"


@pytest.mark.parametrize(
    ("prompt", "want"),
    [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]]), (["a", [1]], ["a", [1]])],
)
def test_prompts_of_completions(prompt: Any, want: Any) -> None:
    tasks = tasks_of(decoded(json.dumps({"prompt": prompt}).encode(), CompletionRequest))
    assert [task.prompt for task in tasks] == want


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "truncate": True}, "truncate"),
        ({"prompt": "a", "logprobs": 30}, "logprobs"),
        ({"prompt": "a", "stream_options": {}}, "stream_options"),
    ],
)
def test_completions_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        tasks_of(decoded(json.dumps(fields).encode(), CompletionRequest))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("ab", ["ab"]),
        ([1, 2], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", "b"], ["a", "b"]),
        (["a", [1, "b"], {"prompt_string": "c"}], ["a", [1, "b"], "c"]),
        ({"prompt_string": "c"}, ["c"]),
    ],
)
def test_prompts_of_llama_cpp(prompt: Any, want: Any) -> None:
    assert native_completion.prompts(prompt) == want


@pytest.mark.parametrize(("prompt", "path"), [([], "prompt"), ({"prompt_string": "a", "multimodal_data": ["x"]}, "prompt.multimodal_data"),
                                             ([{"x": 1}], "prompt[0].prompt_string")])  # fmt: skip
def test_prompts_of_llama_cpp_that_are_none(prompt: Any, path: str) -> None:
    with pytest.raises(ApiError) as caught:
        native_completion.prompts(prompt)
    assert caught.value.param == path


def test_a_gap_with_nothing_on_one_side() -> None:
    with served(scripted("x")) as http:
        refused = http.post("/infill", json={"input_prefix": None, "input_suffix": None})  # this vocabulary has no tokens for gaps
        assert refused.json()["error"]["message"].startswith("this model cannot fill a gap")


def test_images_beside_a_prompt_of_llama_cpp_are_refused() -> None:
    with served(scripted("x")) as http:
        refused = http.post("/completion", json={"prompt": "a", "image_data": [{"data": "AA", "id": 1}]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image_data")
        assert http.post("/completion", json={"prompt": "a", "image_data": []}).status_code == 200


# ---- the shape of answers


def test_a_chat_answer() -> None:
    answer = post(scripted("Fine."), "/v1/chat/completions", {"messages": HELLO})
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Fine.", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["system_fingerprint"].startswith("ggrun-")
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage", "timings"}


def test_thoughts_and_calls_in_a_chat_answer() -> None:
    model = scripted(f"<think>Hmm.</think>{CALL}", source=THINKER)
    body = {"messages": HELLO, "tools": [ADD]}
    [choice] = post(model, "/v1/chat/completions", body)["choices"]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"], message["reasoning_content"]) == ("tool_calls", None, "Hmm.")
    [call] = message["tool_calls"]
    assert (call["type"], call["function"]["name"], json.loads(call["function"]["arguments"])) == ("function", "add", {"a": 1})
    frames = chunks(model, "/v1/chat/completions", body)
    deltas = [frame["choices"][0]["delta"] for frame in frames[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hmm."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert (calls[0]["index"], calls[0]["type"], calls[0]["function"]["name"]) == (0, "function", "add")
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 1}
    assert all("id" not in call for call in calls[1:])
    assert frames[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_functions_are_answered_as_they_were_asked_for() -> None:
    body = {"messages": HELLO, "functions": [ADD["function"]]}
    [choice] = post(scripted(CALL), "/v1/chat/completions", body)["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "add"
    frames = chunks(scripted(CALL), "/v1/chat/completions", body)
    parts = [frame["choices"][0]["delta"].get("function_call", {}) for frame in frames[:-1]]
    assert json.loads("".join(part.get("arguments", "") for part in parts)) == {"a": 1}
    assert frames[-2]["choices"][0]["finish_reason"] == "function_call"


def test_a_choice_of_several_has_its_own_timings_and_the_prompt_is_counted_once() -> None:
    answer = post(scripted("a b", "c"), "/v1/chat/completions", {"messages": HELLO, "n": 2})
    assert "timings" not in answer
    assert [choice["timings"]["predicted_n"] for choice in answer["choices"]] == [2, 1]
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["prompt_tokens"] == post(scripted("x"), "/v1/chat/completions", {"messages": HELLO})["usage"]["prompt_tokens"]


def test_timings_in_every_chunk_where_asked_for() -> None:
    frames = chunks(scripted("a b"), "/v1/chat/completions", {"messages": HELLO, "timings_per_token": True})
    assert all("timings" in frame for frame in frames[:-1])


def test_a_failure_in_a_stream_is_its_last_event() -> None:
    with served(scripted(RuntimeError("the kernel broke"))) as http:
        response = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
        assert response.status_code == 500  # nothing was said yet
        assert response.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("said", "max_tokens", "content", "thought"),
    [
        ("<think>\nHmm, so.</think>\n\nYes.", None, "<think>Hmm, so.</think>Yes.", "Hmm, so."),
        ("<think>\nHmm, so.</think>\n\nYes.", len(tokenizer().encode("<think>\nHmm, so", add_special=False)), "<think>Hmm", "Hmm"),
        ("Yes.", None, "Yes.", ""),
        ("<think>So.</think>" + CALL, None, "<think>So.</think>", "So."),
    ],
)
def test_thoughts_in_both_places(said: str, max_tokens: int | None, content: str, thought: str) -> None:
    body = {"messages": HELLO, "reasoning_format": "deepseek-legacy", "max_tokens": max_tokens, "tools": [ADD]}
    message = post(scripted(said, source=THINKER), "/v1/chat/completions", body)["choices"][0]["message"]
    assert message["content"].startswith(content) if max_tokens else message["content"] == content
    assert message.get("reasoning_content", "").startswith(thought)
    assert ("tool_calls" in message) == (CALL in said)
    frames = chunks(scripted(said, source=THINKER), "/v1/chat/completions", body)[:-1]
    deltas = [frame["choices"][0]["delta"] for frame in frames]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.get("reasoning_content", "")


def test_completions_and_their_log_probabilities() -> None:
    body = {"prompt": "p", "logprobs": 1, "echo": False}
    answer = post(scripted("one two"), "/v1/completions", body)
    assert answer["object"] == "text_completion"
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one two", "stop")
    logs = choice["logprobs"]
    assert "".join(logs["tokens"]) == "one two"
    assert logs["text_offset"] == [sum(map(len, logs["tokens"][:i])) for i in range(len(logs["tokens"]))]
    frames = chunks(scripted("one two"), "/v1/completions", body)
    assert [offset for frame in frames[:-2] for offset in frame["choices"][0]["logprobs"]["text_offset"]] == logs["text_offset"]
    echoed = post(scripted("x"), "/v1/completions", {"prompt": [20, 21], "echo": True})["choices"][0]["text"]
    assert echoed == tokenizer().decode([20, 21]) + "x"


def test_a_prompts_own_log_probabilities() -> None:
    prompt = "naïve 𝄞 text"
    ids = tokenizer().encode(prompt)
    answer = post(scripted("one two"), "/v1/completions", {"prompt": prompt, "logprobs": 1, "echo": True})
    [choice] = answer["choices"]
    assert choice["text"] == prompt + "one two"
    logs = choice["logprobs"]
    n_answer = answer["usage"]["completion_tokens"]
    assert {len(values) for values in logs.values()} == {len(ids) + n_answer}
    assert logs["token_logprobs"][: len(ids)] == [None, *(-float(at) for at in range(1, len(ids)))]
    assert logs["top_logprobs"][0] is None
    assert [list(top.values()) for top in logs["top_logprobs"][1 : len(ids)]] == [[-float(at)] for at in range(1, len(ids))]
    assert logs["text_offset"] == sorted(logs["text_offset"])
    for token, offset in zip(logs["tokens"], logs["text_offset"], strict=True):
        if "\ufffd" not in token and not token.startswith("<"):
            assert choice["text"][offset:].startswith(token.removeprefix(" ") if not offset else token)
    assert logs["text_offset"][len(ids)] == len(prompt)
    frames = chunks(scripted("one two"), "/v1/completions", {"prompt": prompt, "logprobs": 1, "echo": True})[:-1]
    parts = [frame["choices"][0] for frame in frames]
    assert "".join(part["text"] for part in parts) == choice["text"]
    streamed = [part["logprobs"] for part in parts if part["logprobs"]]
    assert {name: [value for part in streamed for value in part[name]] for name in logs} == logs


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_and_several(stream: bool) -> None:
    body = {"prompt": [[20, 21, 22], [23]], "logprobs": 0, "echo": True, "max_tokens": 0}
    if stream:
        choices = [frame["choices"][0] for frame in chunks(scripted("x"), "/v1/completions", body)[:-1]]
        choices = sorted((choice for choice in choices if choice["logprobs"]), key=lambda choice: choice["index"])
    else:
        choices = post(scripted("x"), "/v1/completions", body)["choices"]
    assert [choice["text"] for choice in choices] == [tokenizer().decode([20, 21, 22]), tokenizer().decode([23])]
    assert [choice["logprobs"]["token_logprobs"] for choice in choices] == [[None, -1.0, -2.0], [None]]
    assert [choice["logprobs"]["top_logprobs"] for choice in choices] == [[None, {}, {}], [None]]


def test_usage_of_several_prompts() -> None:
    usage = post(scripted("x"), "/v1/completions", {"prompt": [[20, 21], [22]], "n": 2})["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 4)


def test_infill_asks_for_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    special = {"fim_pre": 30, "fim_suf": 31, "fim_mid": 32, "fim_rep": 33, "fim_sep": 34}
    monkeypatch.setattr(tokenizer(), "special_ids", special)
    model = scripted("x")
    extra = [{"filename": "a.py", "text": "import os\n"}]
    post(model, "/infill", {"input_prefix": "def f", "input_suffix": "return", "input_extra": extra, "prompt": "(x"})
    encode = tokenizer().encode
    files = [33, *encode("project\n"), 34, *encode("a.py\n"), *encode("import os\n"), 34, *encode("current\n")]
    assert model.engine.submitted[0]["ids"] == [*files, 30, *encode("def f"), 31, *encode("return"), 32, *encode("(x")]
    post(model, "/v1/completions", {"prompt": "def f", "suffix": "return"})
    assert model.engine.submitted[1]["ids"] == [30, *encode("def f"), 31, *encode("return"), 32]
