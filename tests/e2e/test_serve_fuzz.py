"""Requests that nobody would write: none gets a 5xx, none stops the server, and afterwards nothing is held."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.e2e.serving import Served

FLAGS = ("-c", "128", "-np", "4", "-n", "8", "--metrics", "--props", "--timeout", "60", "--no-disk-cache")
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/completion",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/embedding",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/show",
)
NAMES = st.sampled_from(
    "messages prompt model max_tokens temperature top_p top_k n stop seed stream logprobs top_logprobs logit_bias tools tool_choice "
    "response_format input suffix echo options format grammar json_schema samplers content tokens role system thinking reasoning "
    "truncate n_predict id_slot".split()
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "assistant", "json_object", "auto", "required", "(((", "root ::= ", "\ud800", "\x00", "1e999"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=5), max_leaves=12
)
MESSAGES = st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), VALUES, max_size=4), max_size=3)
BODIES = st.dictionaries(NAMES, VALUES, max_size=8) | st.builds(
    lambda base, more: {**base, **more},
    st.fixed_dictionaries({"messages": MESSAGES, "prompt": st.text(max_size=10), "model": st.just("x"), "max_tokens": st.integers(-2, 6)}),
    st.dictionaries(NAMES, VALUES, max_size=4),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served(*FLAGS) as served:
        yield served
        assert served.process.poll() is None, served.said
        deadline = time.monotonic() + 10
        while any(slot["is_processing"] for slot in served.get("/slots")):
            assert time.monotonic() < deadline, "a slot is still taken"
            time.sleep(0.1)
        faults = [line for line in served.said.splitlines() if line.startswith("error:") or "Traceback" in line]
        assert not faults, faults


def status(server: Served, path: str, data: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(server.url + path, data, {"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def check(server: Served, path: str, data: bytes) -> int:
    """The status, which is none of the server's own faults; a refusal is JSON with a sentence."""
    code, body = status(server, path, data)
    assert code < 500, (path, data[:500], body[:500])
    if code >= 400:
        told: Any = json.loads(body)["error"]
        sentence = told if isinstance(told, str) else told["message"]
        assert sentence
        assert "Traceback" not in sentence
    return code


@pytest.mark.parametrize("path", PATHS)
def test_any_json(server: Served, path: str) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], derandomize=True)
    @given(BODIES)
    def one(body: dict[str, Any]) -> None:
        check(server, path, json.dumps(body).encode("utf-8", "surrogatepass"))

    one()
    assert server.get("/health") == {"status": "ok"}


DEEP = 100_000
DAMAGED = {
    "nothing": b"",
    "no object": b"[]",
    "null": b"null",
    "half": b'{"messages": [{"role": "us',
    "two": b"{}{}",
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "deep lists": b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep schema": b'{"prompt":"a","messages":[{"role":"user","content":"a"}],"json_schema":' + b'{"items":' * 2000 + b"{}" + b"}" * 2001,
    "huge number": b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e999}',
    "many keys": json.dumps({f"k{i}": i for i in range(20_000)}).encode(),
    "a long name": json.dumps({"x" * 100_000: 1}).encode(),
    "twice": b'{"prompt": "a", "prompt": 3}',
    "a long stop": json.dumps({"prompt": "a", "stop": ["x" * 10_000] * 100, "max_tokens": 2}).encode(),
    "many biases": json.dumps({"prompt": "a", "logit_bias": {str(i): 1 for i in range(5000)}, "max_tokens": 2}).encode(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_bodies(server: Served, name: str) -> None:
    for path in PATHS:
        check(server, path, DAMAGED[name])
    assert server.get("/health") == {"status": "ok"}


@pytest.mark.slow
def test_the_document_and_the_server_agree(server: Served) -> None:
    """schemathesis over every operation of /openapi.json: requests the document allows and requests it does not, and no 5xx."""
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    seen: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if "save" in operation.path:
            continue
        seen.append(operation.path)
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], derandomize=True)
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                response = case.call(timeout=60)
                asked_for = "fail_on_no_slot" in (case.query or {})  # a 503 where no slot is free
                assert response.status_code < 500 or response.status_code == 501 or asked_for, (case.path, case.body, response.text)

            with suppress(Unsatisfiable):  # a request without fields cannot be wrong
                one()
    assert len(seen) > 20
    assert server.get("/health") == {"status": "ok"}
