"""/metrics for Prometheus: what requests did, what engines do, and llama.cpp's own names beside ours.

Only with --metrics is any of this made. The engine's thread notes times of tokens, the event loop requests; the rest is read when asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggrun.server.errors import ApiError
from ggrun.server.operation import operation

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ggrun.engine.generation import Generation
    from ggrun.engine.status import EngineStatus
    from ggrun.server.shelf import ModelState, Shelf

FIRST: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)  # seconds, to the first token
BETWEEN: Final = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 1, 2)
WHOLE: Final = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)

# name, what it is, how it is read from an engine's status
GAUGES: Final = (
    ("ggrun_slots", "Slots there are.", lambda s: len(s.slots)),
    ("ggrun_slots_busy", "Slots that compute.", lambda s: _busy(s)),
    ("ggrun_requests_waiting", "Requests waiting for a slot.", lambda s: s.n_waiting),
    ("ggrun_kv_tokens", "Tokens whose keys and values the pool can hold.", lambda s: s.kv_tokens),
    ("ggrun_kv_used_tokens", "Of them held by running answers.", lambda s: s.kv_used),
    ("ggrun_kv_cached_tokens", "Of them kept for prompts that begin alike.", lambda s: s.kv_cached),
    ("llamacpp:prompt_tokens_seconds", "Average prompt throughput in tokens/s.", lambda s: _rate(s.prompt_tokens, s.prompt_seconds)),
    ("llamacpp:predicted_tokens_seconds", "Average generation throughput in tokens/s.", lambda s: _speed(s)),
    ("llamacpp:requests_processing", "Number of requests processing.", lambda s: _busy(s)),
    ("llamacpp:requests_deferred", "Number of requests deferred.", lambda s: s.n_waiting),
)  # fmt: skip
COUNTERS: Final = (
    ("ggrun_prompt_tokens", "Prompt tokens computed.", lambda s: s.prompt_tokens),
    ("ggrun_cached_tokens", "Prompt tokens that were found in the cache.", lambda s: s.cached_tokens),
    ("ggrun_generated_tokens", "Tokens generated.", lambda s: s.predicted_tokens),
    ("ggrun_prompt_seconds", "Seconds of steps that computed prompts.", lambda s: s.prompt_seconds),
    ("ggrun_generated_seconds", "Seconds of steps that generated.", lambda s: s.predicted_seconds),
    ("ggrun_steps", "Steps of the engine.", lambda s: s.n_steps),
    ("ggrun_preempted", "Answers set back because the pool was full, and computed again later.", lambda s: s.n_preempted),
    ("llamacpp:prompt_tokens", "Number of prompt tokens processed.", lambda s: s.prompt_tokens),
    ("llamacpp:prompt_seconds", "Prompt process time in seconds.", lambda s: s.prompt_seconds),
    ("llamacpp:tokens_predicted", "Number of generation tokens processed.", lambda s: s.predicted_tokens),
    ("llamacpp:tokens_predicted_seconds", "Predict process time in seconds.", lambda s: s.predicted_seconds),
    ("llamacpp:n_decode", "Total number of engine steps.", lambda s: s.n_steps),
)


class Metrics:
    """A registry of its own, so that several servers of one process do not mix."""

    def __init__(self, shelf: Shelf) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]  # a line more for every figure
        self.registry = CollectorRegistry()
        self.requests = Counter("ggrun_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry)
        self.open_requests = Gauge("ggrun_http_requests_open", "Requests being answered.", registry=self.registry)
        self.first = self._times(Histogram, "ggrun_time_to_first_token_seconds", "From the request to the first token.", FIRST)
        self.between = self._times(Histogram, "ggrun_inter_token_seconds", "From one token of an answer to the next.", BETWEEN)
        self.whole = self._times(Histogram, "ggrun_answer_seconds", "From the request to the end of the answer.", WHOLE)
        self._shelf = shelf
        self.registry.register(self)

    def watch(self, model: str) -> Watch:
        """Notes the times of one generation, from now on."""
        return Watch(self.first.labels(model), self.between.labels(model), self.whole.labels(model))

    def collect(self) -> Iterator[Any]:
        """What Prometheus' registry asks for: the figures of every engine that is open, at this moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        states = self._shelf.models()
        open_ones = [(state.name, state.model.engine.status()) for state in states if state.model]
        for table, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, text, read in table:
                rows = family(name, text, labels=["model"])
                for model, status in open_ones:
                    rows.add_metric([model], read(status))
                yield rows
        yield _states(states, GaugeMetricFamily)

    def _times(self, kind: Any, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return kind(name, text, ["model"], buckets=buckets, registry=self.registry)


class Watch:
    """A generation's clock; `seen` is called on the engine's thread after each event."""

    def __init__(self, first: Any, between: Any, whole: Any) -> None:
        self._first, self._between, self._whole = first, between, whole
        self._start = self._last = perf_counter()
        self._n = 0
        self._done = False

    def seen(self, generation: Generation) -> None:
        now, n = perf_counter(), generation.timings.predicted_n
        if n > self._n:
            (self._between if self._n else self._first).observe(now - self._last)
            self._n, self._last = n, now
        if generation.state == "done" and not self._done:
            self._done = True
            self._whole.observe(now - self._start)


class Counted:
    """Middleware: counts requests by route and status. A path that is no route's counts as "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 499  # nothing was sent: the client had gone

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.open_requests.inc()
        try:
            await self._app(scope, receive, send_noting)
        finally:
            self._metrics.open_requests.dec()
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS", "DELETE") else "other"
            self._metrics.requests.labels(method, _route(scope), str(status)).inc()


@operation("Figures for Prometheus", answer="figures in Prometheus' text format; only with --metrics", kinds=("text/plain",))
async def metrics(request: Request) -> Response:
    """All figures in Prometheus' text format."""
    own: Metrics | None = request.app.state.shelf.metrics
    if own is None:
        raise ApiError(501, "This server does not support metrics endpoint. Start it with `--metrics`")  # llama-server's words
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(own.registry), media_type=CONTENT_TYPE_LATEST)


def _busy(status: EngineStatus) -> int:
    return sum(slot.state != "idle" for slot in status.slots)


def _speed(status: EngineStatus) -> float:
    return _rate(status.predicted_tokens, status.predicted_seconds)


def _rate(n: float, seconds: float) -> float:
    return n / seconds if seconds else 0.0


def _route(scope: Scope) -> str:
    """The route's pattern, so that paths with names in them are one."""
    if "endpoint" not in scope:
        return "other"
    path: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(str(value), f"{{{name}}}")
    return path


def _states(states: list[ModelState], family: Any) -> Any:
    rows = family("ggrun_model_loaded", "Whether a model is open.", labels=["model", "state"])
    for state in states:
        rows.add_metric([state.name, state.state], float(state.state == "loaded"))
    return rows


ROUTES = [Route("/metrics", metrics)]
