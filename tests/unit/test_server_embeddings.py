"""Embeddings in every API's shape, over an engine that counts."""

import asyncio
import base64
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from ggrun.errors import GgrunError
from ggrun.runtime.executor import Cancelled
from ggrun.server import embeddings
from ggrun.server.errors import ApiError
from ggrun.server.settings import Settings
from ggrun.server.shelf import Defaults, ModelState
from ggrun.server.vectors import embed, inputs_of, normalized, pooling_of
from tests.conftest import EMBEDDED
from tests.unit.scripted import tokenizer
from tests.unit.server_pieces import NoShelf, bare_app, client


class CountingEngine:
    """A text's vector is its number of tokens, twice that, and zeros."""

    def __init__(self) -> None:
        self.tokenizer, self.n_ctx = tokenizer(), 20
        self.spec = SimpleNamespace(n_vocab=self.tokenizer.n_vocab, n_embd=4)
        self.poolings: list[str | None] = []
        self.running = self.most = 0
        self._lock = threading.Lock()

    def embed(self, ids: list[int], pooling: str | None, cancelled: Callable[[], bool]) -> NDArray[np.float32]:
        with self._lock:
            self.poolings.append(pooling)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        with self._lock:
            self.running -= 1
        return np.array([len(ids), 2 * len(ids), 0, 0], np.float32)


class Shelf(NoShelf):
    def __init__(self) -> None:
        self.engine = CountingEngine()

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Any]:
        yield SimpleNamespace(name="pydoc", engine=self.engine, defaults=Defaults())

    def models(self) -> list[ModelState]:
        return [ModelState("pydoc", (), EMBEDDED, "loaded", 1)]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def http(shelf: Shelf) -> Iterator[TestClient]:
    with client(bare_app(embeddings.ROUTES, shelf)) as made:
        yield made


UNIT = [1 / 5**0.5, 2 / 5**0.5, 0, 0]


@pytest.mark.parametrize(("given", "n"), [("Hello", 1), (["Hello", "you"], 2), ([5, 6], 1), ([[5, 6], [7]], 2), (["Hello", [5]], 2)])
def test_openais_inputs(http: TestClient, given: Any, n: int) -> None:
    made = http.post("/v1/embeddings", json={"input": given, "model": "x"}).json()
    assert (made["object"], made["model"], [row["index"] for row in made["data"]]) == ("list", "pydoc", list(range(n)))
    for row in made["data"]:
        assert row["embedding"] == pytest.approx(UNIT)
    assert made["usage"]["prompt_tokens"] == made["usage"]["total_tokens"] > 0


def test_null_is_as_good_as_nothing(http: TestClient) -> None:
    plain = http.post("/v1/embeddings", json={"input": "a"}).json()
    nothing = {"encoding_format": None, "dimensions": None, "user": None, "embd_normalize": None}
    assert http.post("/v1/embeddings", json={"input": "a", **nothing}).json()["data"] == plain["data"]


def test_base64_is_little_endian_float32(http: TestClient) -> None:
    made = http.post("/v1/embeddings", json={"input": "Hello", "encoding_format": "base64"}).json()
    assert np.frombuffer(base64.b64decode(made["data"][0]["embedding"]), "<f4").tolist() == pytest.approx(UNIT)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [1, "a"]}, "input[0]"),
        ({"input": [10**9]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
        ({"input": 5}, "input"),
    ],
)
def test_what_is_refused_is_named(http: TestClient, shelf: Shelf, body: dict[str, Any], param: str) -> None:
    made = http.post("/v1/embeddings", json=body)
    assert (made.status_code, made.json()["error"]["param"]) == (400, param)
    assert shelf.engine.poolings == []


def test_what_is_too_long_is_refused_with_both_numbers(http: TestClient) -> None:
    error = http.post("/v1/embeddings", json={"input": [5] * 21}).json()["error"]
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 21, 20)
    assert http.post("/v1/embeddings", json={"input": [5] * 20, "dimensions": 4}).status_code == 200


def test_llama_cpps_shape(http: TestClient) -> None:
    for path in ("/embedding", "/embeddings"):
        made = http.post(path, json={"content": ["Hello", "you"]}).json()
        assert [row["index"] for row in made] == [0, 1]
        assert made[0]["embedding"] == [pytest.approx(UNIT)]
    [raw] = http.post("/embedding", json={"input": [5, 6, 7], "embd_normalize": -1}).json()
    assert raw["embedding"] == [[3, 6, 0, 0]]
    assert http.post("/embedding", json={}).status_code == 400


def test_ollamas_shapes(http: TestClient, shelf: Shelf) -> None:
    made = http.post("/api/embed", json={"model": "pydoc:latest", "input": ["Hello", "you"]}).json()
    assert made["embeddings"] == [pytest.approx(UNIT)] * 2
    assert made["prompt_eval_count"] > 1
    long = "Hello " * 30
    refused = http.post("/api/embed", json={"model": "pydoc", "input": long})
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    assert http.post("/api/embed", json={"model": "pydoc", "input": long, "truncate": True}).json()["prompt_eval_count"] == 20
    assert http.post("/api/embed", json={"model": "pydoc", "input": []}).json()["embeddings"] == []
    n = len(shelf.engine.tokenizer.encode("Hello"))
    assert http.post("/api/embeddings", json={"model": "pydoc", "prompt": "Hello"}).json() == {"embedding": [n, 2 * n, 0, 0]}


def test_inputs_are_computed_together_but_not_all(http: TestClient, shelf: Shelf) -> None:
    http.post("/v1/embeddings", json={"input": ["Hello"] * 20})
    assert 1 < shelf.engine.most <= 4
    assert set(shelf.engine.poolings) == {None}


def test_pooling_is_the_servers_or_the_models() -> None:
    assert pooling_of(Settings()) is None
    assert pooling_of(Settings(pooling="cls")) == "cls"
    with pytest.raises(ApiError, match="--pooling none"):
        pooling_of(Settings(pooling="none"))


@pytest.mark.parametrize(("norm", "size"), [(2, 5.0), (1, 7.0), (-1, 1.0), (0, 4 / 32760), (3, (3**3 + 4**3) ** (1 / 3))])
def test_norms(norm: int, size: float) -> None:
    row = np.array([3, -4], np.float32)
    assert normalized(row, norm) == pytest.approx(row / size)


def test_norms_of_extremes_are_finite() -> None:
    assert normalized(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    huge = normalized(np.array([3e38, 3e38], np.float32), 64)
    assert np.isfinite(huge).all()
    assert huge[0] > 0.9


def test_a_list_of_lists_of_texts_is_no_input() -> None:
    with pytest.raises(ApiError) as caught:
        inputs_of([["a"]], "input")
    assert caught.value.param == "input[0]"


class WaitingEngine(CountingEngine):
    """Computes until it is told to stop; a text of two tokens breaks it."""

    def __init__(self) -> None:
        super().__init__()
        self.n_stopped = 0

    def embed(self, ids: list[int], pooling: str | None, cancelled: Callable[[], bool]) -> NDArray[np.float32]:
        if len(ids) == 2:
            raise GgrunError("the weights are damaged")
        until = time.monotonic() + 10
        while not cancelled() and time.monotonic() < until:
            time.sleep(0.005)
        self.n_stopped += cancelled()
        raise Cancelled


def test_nothing_is_computed_for_a_client_that_is_gone() -> None:
    engine = WaitingEngine()

    async def work() -> None:
        model: Any = SimpleNamespace(name="m", engine=engine)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await embed(model, Settings(), [[5], [6], [7], [8], [9]], "input")
        with pytest.raises(GgrunError, match="damaged"):
            await embed(model, Settings(), [[5], [5, 6]], "input")

    started = time.monotonic()
    asyncio.run(work())
    until = time.monotonic() + 2
    while engine.n_stopped < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.n_stopped == 5  # four of the first request's five, one of the second's
    assert time.monotonic() - started < 5
