"""The real `openai` client against a real server with the embedded model."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.e2e.serving import Served

QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]
ENDLESS: dict[str, Any] = {"logit_bias": {"0": -100, "2": -100}}  # the tokens that end an answer


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("-np", "4", "-c", "2048") as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "any-name", "messages": QUESTION, "temperature": 0, **options})


def test_how_likely_a_text_is(client: OpenAI) -> None:
    """As evaluation harnesses ask: a context and its continuation as token ids, one token of an answer, which they leave out."""
    from ggrun import Engine

    with Engine.open(n_ctx=2048, n_logits=512) as engine:
        texts = ["os.path.join joins path components.", "The json module encodes and decodes JSON. " * 9]
        ids = [engine.tokenizer.encode(text) for text in texts]
        logits = [engine.forward(tokens).astype(float) for tokens in ids]
    for prompt in (ids, texts):
        answer = client.completions.create(model="any", prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
        for choice, tokens, rows in zip(answer.choices, ids, logits, strict=True):
            logs = choice.logprobs
            assert logs is not None
            assert len(logs.token_logprobs) == len(logs.tokens) == len(tokens) + 1
            assert logs.token_logprobs[0] is None
            for row, id_, logprob, top in zip(rows, tokens[1:], logs.token_logprobs[1:], logs.top_logprobs[1:]):
                greatest = row.max()
                assert abs(logprob - (row[id_] - greatest - math.log(sum(math.exp(x - greatest) for x in row)))) < 1e-5
                assert (max(top.values()) == logprob) == (row[id_] == greatest)


def test_an_answer(client: OpenAI) -> None:
    answer = ask(client)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert "os.path.join" in choice.message.content
    assert choice.finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", "pydoc")
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens > 3
    assert answer.timings["predicted_n"] == usage.completion_tokens


def test_a_stream_says_the_same(client: OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert len(chunks) > 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_without_usage_ends_with_the_reason(server: Served) -> None:
    frames = server.frames("/v1/chat/completions", {"messages": QUESTION, "stream": True, "temperature": 0, "max_tokens": 3})
    assert frames[-1] == "[DONE]"
    assert frames[-2]["choices"][0]["finish_reason"] == "length"
    assert "usage" not in frames[-2]
    assert frames[-2]["timings"]["predicted_n"] == 3


def test_the_prompt_is_found_in_the_cache_the_second_time(client: OpenAI) -> None:
    messages = [{"role": "system", "content": "You know Python's library well. " * 20}, *QUESTION]
    first = ask(client, messages=messages, max_tokens=2).usage
    second = ask(client, messages=messages, max_tokens=2).usage
    assert second.prompt_tokens_details.cached_tokens >= first.prompt_tokens - 40
    assert second.prompt_tokens_details.cached_tokens < second.prompt_tokens == first.prompt_tokens


def test_log_probabilities(client: OpenAI) -> None:
    for stream in (False, True):
        answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=stream)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        text = "".join(choice.delta.content or "" for choice in choices) if stream else choices[0].message.content
        assert len(tokens) == 6
        assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
        for token in tokens:
            assert len(token.top_logprobs) == 3
            assert token.logprob == token.top_logprobs[0].logprob <= 0  # temperature 0 takes the likeliest
            assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)


def test_several_choices_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 11, "temperature": 9, "top_p": 1, "max_tokens": 16, "extra_body": {"top_k": 0, "min_p": 0}}
    first, second = (ask(client, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage.prompt_tokens < 40  # of all three together: it is one prompt
    streamed = ["", "", ""]
    for chunk in ask(client, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_stop_words(client: OpenAI, stream: bool, as_list: bool) -> None:
    whole = ask(client).choices[0].message.content
    word = whole.split()[2]
    answer = ask(client, stop=["never said", word] if as_list else word, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join(choice.delta.content or "" for choice in choices) if stream else choices[0].message.content
    assert text == whole[: whole.index(word)]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_limits(client: OpenAI, name: str) -> None:
    answer = ask(client, **{name: 3})
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)


def test_a_bias_forbids_and_penalties_count(client: OpenAI, server: Served) -> None:
    [first] = server.post("/tokenize", {"content": ask(client, max_tokens=1).choices[0].message.content})[1]["tokens"]
    other = ask(client, max_tokens=1, logit_bias={str(first): -100}).choices[0].message.content
    assert other != ask(client, max_tokens=1).choices[0].message.content
    plain, penalized = (ask(client, max_tokens=60, frequency_penalty=x, **ENDLESS).choices[0].message.content for x in (0, 2))
    assert plain != penalized


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}, "kind": {"enum": ["module", "function"]}},
    "required": ["name", "n", "kind"],
    "additionalProperties": False,
}


def test_structured_output_validates(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
    for seed in range(3):
        answer = ask(client, response_format=form, temperature=1, seed=seed, max_tokens=400)
        if answer.choices[0].finish_reason == "stop":
            jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
        assert answer.choices[0].message.content.startswith("{")
    assert isinstance(json.loads(ask(client, response_format={"type": "json_schema", "json_schema": {
        "name": "flag", "schema": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
                                   "additionalProperties": False}}}).choices[0].message.content)["on"], bool)  # fmt: skip


def test_each_choice_follows_the_form(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no", "perhaps"]}}}
    choices = ask(client, response_format=form, n=4, seed=1, temperature=5, top_p=1, extra_body={"min_p": 0}).choices
    assert {json.loads(choice.message.content) for choice in choices} <= {"yes", "no", "perhaps"}
    assert len({choice.message.content for choice in choices}) > 1


def test_a_schema_that_is_not_supported_is_refused_by_name(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "strange"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"


def test_completions_take_all_forms_of_prompts(client: OpenAI, server: Served) -> None:
    text = "def join("
    ids = server.post("/tokenize", {"content": text})[1]["tokens"]
    prompts: list[tuple[Any, int]] = [(text, 1), ([text, text], 2), (ids, 1), ([ids, ids], 2)]
    texts = []
    for prompt, n in prompts:
        answer = client.completions.create(model="any", prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(n))
        assert answer.usage
        assert answer.usage.prompt_tokens == n * len(ids)
        texts += [choice.text for choice in answer.choices]
    assert len(set(texts)) == 1
    assert texts[0]


def test_completions_echo_stream_and_log(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "any", "prompt": "def join(", "max_tokens": 6, "temperature": 0}
    plain = client.completions.create(**options).choices[0].text
    assert client.completions.create(**options, echo=True).choices[0].text == "def join(" + plain
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)) == plain
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True, echo=True)) == "def join(" + plain
    logs = client.completions.create(**options, logprobs=2).choices[0].logprobs
    assert logs
    assert logs.tokens
    assert logs.top_logprobs
    assert "".join(logs.tokens) == plain
    assert logs.text_offset == [len("".join(logs.tokens[:i])) for i in range(6)]
    assert all(1 <= len(top) <= 2 for top in logs.top_logprobs)
    several = client.completions.create(**{**options, "prompt": ["def join(", "class A"], "n": 2, "temperature": 1}, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"top_p": 3}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": "many"}, "n"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "custom", "function": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"store": True}, "store"),
    ({"extra_body": {"typical_p": "x"}}, "typical_p"),
    ({"extra_body": {"mirostat": 3}}, "mirostat"),
    ({"extra_body": {"samplers": ["magic"]}}, "samplers"),
    ({"extra_body": {"lora": [{"id": 0}]}}, "lora"),
    ({"extra_body": {"grammar": "root ::= ("}}, "grammar"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
]


@pytest.mark.parametrize(("options", "param"), BAD, ids=[param for _, param in BAD])
def test_what_is_wrong_is_named(client: OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param
    assert caught.value.type


def test_a_stream_is_refused_like_a_whole_answer(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=True, top_p=3)
    assert caught.value.param == "top_p"


def test_a_prompt_that_is_too_long(client: OpenAI, server: Served) -> None:
    messages = [{"role": "user", "content": "long " * 3000}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=messages)
    body: Any = caught.value.body
    assert body["type"] == "exceed_context_size_error"
    assert caught.value.code == "context_length_exceeded"
    assert body["n_prompt_tokens"] > body["n_ctx"] == server.get("/v1/models")["data"][0]["meta"]["n_ctx"]
    answer = ask(client, messages=messages, max_tokens=4, extra_body={"truncate": True})
    assert answer.truncated is True
    assert answer.dropped_tokens >= body["n_prompt_tokens"] - body["n_ctx"]


def test_models(client: OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("pydoc", "model")
    meta = model.meta  # type: ignore[attr-defined]
    assert meta["n_ctx_train"] == 4096
    assert meta["n_vocab"] == 3072
    assert client.models.retrieve("pydoc").id == "pydoc"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def busy(server: Served) -> int:
    return sum(slot["is_processing"] for slot in server.get("/slots"))


def wait_until_idle(server: Served, seconds: float) -> None:
    end = time.monotonic() + seconds
    while busy(server) and time.monotonic() < end:
        time.sleep(0.02)
    assert not busy(server)


def test_a_client_that_leaves_frees_its_slot(client: OpenAI, server: Served) -> None:
    wait_until_idle(server, 5)
    stream = ask(client, stream=True, n=3, **ENDLESS)
    for _ in range(5):
        next(stream)
    assert busy(server) == 3
    stream.close()
    wait_until_idle(server, 1)


def test_a_client_that_gives_up_waiting_frees_its_slot(client: OpenAI, server: Served) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.2), n=2, messages=[{"role": "user", "content": "x " * 100}], **ENDLESS)
    wait_until_idle(server, 1)


def test_many_at_once_all_get_their_own_answer(client: OpenAI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    names = ["os.getcwd", "os.path.join", "len", "sorted", "json.dumps", "math.sqrt", "re.match", "sum"] * 2
    questions = [[{"role": "user", "content": f"What does {name} do?"}] for name in names]
    alone = [ask(client, messages=question).choices[0].message.content for question in questions[:8]]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda question: ask(client, messages=question).choices[0].message.content, questions))
    assert together == alone + alone


def test_llama_cpps_own_completion(server: Served) -> None:
    asked = {"prompt": "def join(", "n_predict": 6, "temperature": 0}
    status, answer = server.post("/completion", {**asked, "n_probs": 2, "return_tokens": True})
    assert status == 200
    assert (answer["stop"], answer["stop_type"], answer["tokens_predicted"], answer["model"]) == (True, "limit", 6, "pydoc")
    assert answer["generation_settings"]["temperature"] == 0
    assert len(answer["tokens"]) == 6
    probabilities = answer["completion_probabilities"]
    assert [entry["id"] for entry in probabilities] == answer["tokens"]
    assert b"".join(bytes(entry["bytes"]) for entry in probabilities).decode() == answer["content"]
    frames = server.frames("/completion", {**asked, "stream": True})
    assert "".join(frame["content"] for frame in frames) == answer["content"]
    assert [frame["stop"] for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [token for frame in frames for token in frame["tokens"]] == answer["tokens"]
    assert frames[-1]["timings"]["predicted_n"] == 6
    status, several = server.post("/completion", {"prompt": ["def join(", [100, 101]], "n_predict": 2, "temperature": 0})
    assert [row["index"] for row in several] == [0, 1]
    status, picked = server.post(
        "/completion", {"prompt": "a", "n_predict": 1, "seed": 5, "response_fields": ["content", "generation_settings/seed", "no/such"]}
    )
    assert picked == {"content": picked["content"], "seed": 5}


def test_stop_types_of_llama_cpp(server: Served) -> None:
    question = {"prompt": "<|im_start|>user\nWhat does len do?<|im_end|>\n<|im_start|>assistant\n", "temperature": 0}
    whole = server.post("/completion", question)[1]
    assert (whole["stop_type"], whole["stopping_word"]) == ("eos", "")
    word = whole["content"].split()[1]
    stopped = server.post("/completion", {**question, "stop": [word]})[1]
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == whole["content"][: whole["content"].index(word)]


def test_infill_is_refused_where_the_vocabulary_cannot(server: Served) -> None:
    status, body = server.post("/infill", {"input_prefix": "a", "input_suffix": "b"})
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, "input_suffix", 400)
    status, body = server.post("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert (status, body["error"]["param"]) == (400, "suffix")


def test_progress_of_a_long_prompt_is_told(server: Served) -> None:
    n = server.get("/v1/models")["data"][0]["meta"]["n_ctx"] // 8
    body = {"messages": [{"role": "user", "content": "word " * n}], "stream": True, "max_tokens": 1, "return_progress": True}
    frames = server.frames("/v1/chat/completions", body)
    for frame in frames:
        if frame != "[DONE]" and "prompt_progress" in frame:  # this model is mostly faster than anything is told
            progress = frame["prompt_progress"]
            assert 0 <= progress["cache"] <= progress["processed"] <= progress["total"]
    assert frames[-1] == "[DONE]"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": NOTHING}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_demanded_is_made(client: OpenAI, choice: Any, stream: bool) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    answer = ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False, stream=stream, max_tokens=300)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
        name, arguments = parts[0].function.name, "".join(part.function.arguments or "" for part in parts)
        assert parts[0].id
        assert chunks[-1].finish_reason == "tool_calls"
        assert not "".join(chunk.delta.content or "" for chunk in chunks).strip()
    else:
        [choice] = answer.choices
        [call] = choice.message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        assert call.id
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert name == "weather"
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])  # type: ignore[index]


def test_a_form_and_tools_together_give_one_of_both(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    for seed in range(4):
        [choice] = ask(client, response_format=form, tools=[WEATHER], seed=seed, temperature=2, max_tokens=200).choices
        if choice.finish_reason == "tool_calls":
            jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), WEATHER["function"]["parameters"])  # type: ignore[index]
        elif choice.finish_reason == "stop":
            assert json.loads(choice.message.content) in ("yes", "no")


def test_results_of_calls_go_back(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm", "unit": "C"}'}}
    messages = [*QUESTION, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    assert ask(client, messages=messages, tools=[WEATHER], tool_choice="none").choices[0].message.content


def test_a_tool_whose_schema_cannot_be_used_is_named(client: OpenAI) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"properties": {"a": {"type": "strange"}}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=[WEATHER, bad], tool_choice="required")
    assert caught.value.param == "tools[1].function.parameters"


def test_no_tokens_at_all(client: OpenAI) -> None:
    answer = ask(client, max_tokens=0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("", "length", 0)
    assert client.completions.create(model="any", prompt="def f", max_tokens=0, echo=True).choices[0].text == "def f"


def test_strict_models_and_aliases() -> None:
    with Served("--strict-model", "-a", "first,second", "-c", "512") as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)
        for name in ("first", "second"):
            assert ask(client, model=name, max_tokens=1).model == "first"
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(client, model="any-name", stream=stream)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert client.models.retrieve("second").id == "first"
