"""The real clients of the other APIs against a real server with the embedded model: `openai`'s responses, `anthropic`, `ollama`."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Literal

import anthropic
import httpx
import numpy as np
import ollama
import openai
import pydantic
import pytest

from tests.e2e.serving import Served

QUESTION = "What does os.path.join do?"
COLD = {"temperature": 0.0}


class Weather(pydantic.BaseModel):
    town: Literal["Ulm", "Bonn"]  # not any text: this model would write on and on
    warm: bool


SCHEMA = Weather.model_json_schema() | {"additionalProperties": False}
FUNCTION = {"name": "weather", "description": "The weather of a town.", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("-np", "4", "-c", "2048", "--temp", "0") as served:
        yield served


@pytest.fixture(scope="module")
def oai(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def claude(server: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def llama(server: Served) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=60)


# ---- OpenAI's responses


def test_a_response(oai: openai.OpenAI) -> None:
    made = oai.responses.create(model="any", input=QUESTION, instructions="Answer.")
    assert "os.path.join" in made.output_text
    assert (made.status, made.model, made.error, made.incomplete_details) == ("completed", "pydoc", None, None)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    again = oai.responses.create(model="any", input=QUESTION, instructions="Answer.")
    assert again.output_text == made.output_text
    assert again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens == made.usage.input_tokens - 1


def test_a_stream_of_events(oai: openai.OpenAI) -> None:
    whole = oai.responses.create(model="any", input=QUESTION)
    with oai.responses.stream(model="any", input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == deltas[-1].snapshot == whole.output_text
    assert len(deltas) > 3
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_that_is_cut(oai: openai.OpenAI) -> None:
    made = oai.responses.create(model="any", input=QUESTION, max_output_tokens=3)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    assert made.usage.output_tokens == 3


def test_a_conversation_that_is_kept(oai: openai.OpenAI) -> None:
    first = oai.responses.create(model="any", input=QUESTION)
    second = oai.responses.create(model="any", input="And len?", previous_response_id=first.id)
    items = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And len?"}]
    by_hand = oai.responses.create(model="any", input=items, store=False)
    assert second.output_text == by_hand.output_text
    assert second.usage is not None
    assert by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens
    assert oai.responses.retrieve(first.id).output_text == first.output_text
    oai.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        oai.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        oai.responses.create(model="any", input="On", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.NotFoundError):
        oai.responses.retrieve(by_hand.id)


def test_a_response_with_a_form(oai: openai.OpenAI) -> None:
    made = oai.responses.parse(model="any", input="The weather of Ulm?", text_format=Weather, max_output_tokens=400)
    assert made.status == "completed"
    assert isinstance(made.output_parsed, Weather)
    with oai.responses.stream(model="any", input="The weather of Ulm?", text_format=Weather, max_output_tokens=400) as stream:
        assert stream.get_final_response().output_parsed == made.output_parsed


def test_a_response_that_calls(oai: openai.OpenAI) -> None:
    tool = {"type": "function", "strict": True, **FUNCTION}
    made = oai.responses.create(model="any", input="Weather in Ulm?", tools=[tool], tool_choice="required", max_output_tokens=400)
    [call] = [item for item in made.output if item.type == "function_call"]
    Weather.model_validate_json(call.arguments)
    assert (call.name, made.status) == ("weather", "completed")
    with oai.responses.stream(
        model="any", input="Weather in Ulm?", tools=[tool], tool_choice={"type": "function", "name": "weather"}, max_output_tokens=400
    ) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
    Weather.model_validate_json(deltas)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "Weather?"}, *made.output, output]
    assert oai.responses.create(model="any", input=items, tools=[tool]).status == "completed"


def test_log_probabilities_of_a_response(oai: openai.OpenAI) -> None:
    made = oai.responses.create(
        model="any", input=QUESTION, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4
    )
    [part] = made.output[0].content
    assert "".join(log.token for log in part.logprobs) == part.text
    assert [len(log.top_logprobs) for log in part.logprobs] == [2] * 4
    assert all(log.logprob <= 0 for log in part.logprobs)


def test_a_response_is_counted_and_refused(oai: openai.OpenAI) -> None:
    made = oai.responses.create(model="any", input=QUESTION)
    assert made.usage is not None
    assert oai.responses.input_tokens.count(model="any", input=QUESTION).input_tokens == made.usage.input_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        oai.responses.create(model="any", input=QUESTION, tools=[{"type": "web_search"}])
    assert caught.value.param == "tools[0].type"
    long = "word " * 3000
    with pytest.raises(openai.BadRequestError) as too_long:
        oai.responses.create(model="any", input=long)
    assert too_long.value.type == "exceed_context_size_error"
    cut = oai.responses.create(model="any", input=long, truncation="auto", max_output_tokens=3)
    assert cut.truncated
    assert cut.dropped_tokens > 0


def test_embeddings(oai: openai.OpenAI) -> None:
    made = oai.embeddings.create(model="any", input=["What is a list?", "What is a dict?", "What is a list?"])
    rows = np.array([row.embedding for row in made.data])
    assert rows.shape[0] == 3
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-4)
    assert rows[0] == pytest.approx(rows[2], abs=1e-4)
    assert rows[0] @ rows[1] < 0.9999
    plain = oai.embeddings.create(model="any", input="What is a list?", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(rows[0], abs=1e-4)
    assert plain.usage.prompt_tokens * 2 < made.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError):
        oai.embeddings.create(model="any", input="x", dimensions=7)


# ---- Anthropic's messages


def test_a_message(claude: anthropic.Anthropic, oai: openai.OpenAI) -> None:
    made = claude.messages.create(model="any", max_tokens=100, messages=[{"role": "user", "content": QUESTION}])
    [block] = made.content
    assert block.type == "text"
    assert block.text == oai.responses.create(model="any", input=QUESTION).output_text
    assert (made.model, made.stop_reason, made.role) == ("pydoc", "end_turn", "assistant")
    n_prompt = claude.messages.count_tokens(model="any", messages=[{"role": "user", "content": QUESTION}]).input_tokens
    assert made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0) == n_prompt
    assert made.usage.output_tokens > 3


def test_a_stream_of_blocks(claude: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = {"model": "any", "max_tokens": 100, "messages": messages, "system": [{"type": "text", "text": "Hi."}]}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    kinds = [event.type for event in claude.messages.create(**asked, stream=True)]
    assert [kinds[0], kinds[-1]] == ["message_start", "message_stop"]


def test_a_message_ends_where_it_should(claude: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    whole = claude.messages.create(model="any", max_tokens=100, messages=messages).content[0].text
    cut = claude.messages.create(model="any", max_tokens=2, messages=messages)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    word = whole.split()[-1]
    stopped = claude.messages.create(model="any", max_tokens=100, messages=messages, stop_sequences=["zzz", word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert stopped.content[0].text == whole[: whole.index(word)]
    begun = [*messages, {"role": "assistant", "content": cut.content[0].text}]
    assert cut.content[0].text + claude.messages.create(model="any", max_tokens=100, messages=begun).content[0].text == whole


def test_a_message_that_uses_a_tool(claude: anthropic.Anthropic) -> None:
    tool = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}
    messages = [{"role": "user", "content": "The weather in Ulm?"}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        made = claude.messages.create(model="any", max_tokens=400, messages=messages, tools=[tool], tool_choice=choice)
        assert made.stop_reason == "tool_use"
        use = made.content[-1]
        assert use.name == "weather"
        Weather.model_validate(use.input)
    with claude.messages.stream(model="any", max_tokens=400, messages=messages, tools=[tool], tool_choice={"type": "any"}) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(parts)) == final.content[-1].input
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]}
    told = claude.messages.create(
        model="any", max_tokens=100, messages=[*messages, {"role": "assistant", "content": made.content}, result], tools=[tool]
    )
    assert told.stop_reason in ("end_turn", "max_tokens")


def test_a_message_with_a_form(claude: anthropic.Anthropic) -> None:
    schema = {"type": "json_schema", "schema": FUNCTION["parameters"]}
    made = claude.messages.create(
        model="any", max_tokens=400, messages=[{"role": "user", "content": "Weather in Ulm?"}], output_config={"format": schema}
    )
    Weather.model_validate_json(made.content[0].text)


def test_anthropics_models(claude: anthropic.Anthropic) -> None:
    [model] = list(claude.models.list())
    assert (model.id, model.display_name, model.created_at.year > 2000) == ("pydoc", "pydoc", True)
    assert claude.models.retrieve("pydoc").id == "pydoc"


def test_a_message_that_is_refused(claude: anthropic.Anthropic, server: Served) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\]"):
        claude.messages.create(model="any", max_tokens=9, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.BadRequestError, match="tokens"):
        claude.messages.create(model="any", max_tokens=9, messages=[{"role": "user", "content": "word " * 3000}])
    wrong = httpx.post(f"{server.url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (wrong.status_code, wrong.json()["type"]) == (400, "error")


# ---- Ollama's


def test_ollama_chat(llama: ollama.Client, oai: openai.OpenAI) -> None:
    whole = llama.chat("pydoc:latest", [{"role": "user", "content": QUESTION}], options=COLD)
    assert whole.message.content == oai.responses.create(model="any", input=QUESTION).output_text
    assert (whole.model, whole.done, whole.done_reason) == ("pydoc", True, "stop")
    parts = list(llama.chat("pydoc", [{"role": "user", "content": QUESTION}], stream=True, options=COLD))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert len(parts) > 3
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].total_duration >= parts[-1].eval_duration > 0
    cut = llama.chat("pydoc", [{"role": "user", "content": QUESTION}], options={"num_predict": 2, "num_ctx": 4096})
    assert (cut.done_reason, cut.eval_count) == ("length", 2)


def test_ollama_tools_and_forms(llama: ollama.Client) -> None:
    def weather(town: str, warm: bool) -> str:
        """The weather.

        Args:
            town: where
            warm: whether it is
        """
        return town

    made = llama.chat("pydoc", [{"role": "user", "content": "Weather?"}], tools=[weather], options={"num_predict": 60})
    assert made.done
    schema = llama.chat("pydoc", [{"role": "user", "content": "Ulm?"}], format=SCHEMA, options={"num_predict": 400})
    Weather.model_validate_json(schema.message.content or "")
    plain = llama.generate("pydoc", "Ulm?", format="json", options={"num_predict": 400})
    if plain.done_reason == "stop":
        json.loads(plain.response or "")


def test_ollama_generate(llama: ollama.Client) -> None:
    first = llama.generate("pydoc", QUESTION, options=COLD)
    assert "os.path.join" in (first.response or "")
    assert len(first.context or ()) == (first.prompt_eval_count or 0) + (first.eval_count or 0) + 1
    second = llama.generate("pydoc", "And len?", context=first.context, options=COLD)
    assert (second.prompt_eval_count or 0) > len(first.context or ())
    raw = llama.generate("pydoc", "import os", raw=True, options={"num_predict": 4}, logprobs=True, top_logprobs=1)
    assert raw.context is None
    assert len(raw.logprobs or ()) == 4
    assert "".join(part.response or "" for part in llama.generate("pydoc", QUESTION, stream=True, options=COLD)) == first.response


def test_ollama_models(llama: ollama.Client) -> None:
    [model] = llama.list().models
    assert (model.model, model.details.format) == ("pydoc", "gguf")
    [running] = llama.ps().models
    assert running.context_length == 2048
    shown = llama.show("pydoc")
    assert "completion" in (shown.capabilities or [])
    assert shown.modelinfo["general.architecture"] == "llama"
    for refused in (lambda: llama.pull("llama3"), lambda: llama.delete("pydoc"), lambda: llama.copy("a", "b"), lambda: llama.create("a")):
        with pytest.raises(ollama.ResponseError, match="not supported"):
            refused()
    with pytest.raises(ollama.ResponseError, match="images"):
        llama.chat("pydoc", [{"role": "user", "content": "x", "images": ["aGk="]}])


def test_ollama_embeddings(llama: ollama.Client, oai: openai.OpenAI) -> None:
    made = llama.embed("pydoc", ["What is a list?", "x"])
    expected = oai.embeddings.create(model="any", input="What is a list?", encoding_format="float").data[0].embedding
    assert made.embeddings[0] == pytest.approx(expected, abs=1e-4)
    old = np.array(llama.embeddings("pydoc", "What is a list?").embedding)
    assert old / np.linalg.norm(old) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ollama.ResponseError, match="context"):
        llama.embed("pydoc", "word " * 3000)


# ---- clients that go away

ENDLESS = [
    ("/v1/responses", {"input": QUESTION}),
    ("/v1/messages", {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100_000}),
    ("/api/chat", {"model": "pydoc", "messages": [{"role": "user", "content": QUESTION}]}),
    ("/api/generate", {"model": "pydoc", "prompt": QUESTION}),
]


@pytest.fixture(scope="module")
def endless() -> Iterator[Served]:
    with Served("-np", "2", "-c", "4096", "--ignore-eos", "--context-shift", "-n", "-1") as served:
        yield served


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), ENDLESS)
def test_an_answer_nobody_waits_for_is_stopped(endless: Served, path: str, body: dict[str, object], stream: bool) -> None:
    with httpx.Client(base_url=endless.url) as http:
        if stream:
            with http.stream("POST", path, json={**body, "stream": True}, timeout=30) as response:
                lines = response.iter_lines()  # once it is gone, so is the connection
                assert len(list(itertools.islice(lines, 12))) == 12
                deadline = time.monotonic() + 5
                while not any(slot["is_processing"] for slot in endless.get("/slots")):
                    assert time.monotonic() < deadline, "nothing is being computed"
                lines.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(path, json={**body, "stream": False}, timeout=httpx.Timeout(10, read=0.5))
    until = time.monotonic() + 2
    while busy := [slot for slot in endless.get("/slots") if slot["is_processing"]]:
        assert time.monotonic() < until, busy
        time.sleep(0.02)
