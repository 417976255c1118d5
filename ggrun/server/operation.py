"""What a route does, said once beside its endpoint: the OpenAPI document and its test read it.

    @operation("Answer a conversation", request=ChatRequest, answer="the answer, or server-sent events with `stream`")
    async def chat(request: Request) -> Response: ...

Path, methods and path parameters come from the route itself, so that they cannot differ. Endpoints that are methods or classes may set
the attribute `operation` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """summary: a few words. request: the msgspec struct of the body (None: no body), or a table of them by method. answer: what comes
    with status 200. kinds: media types of the answer. query: name -> description of the query's parameters (all optional)."""

    summary: str
    request: Any = None
    answer: str = "the answer"
    kinds: tuple[str, ...] = (JSON,)
    query: Mapping[str, str] = field(default_factory=dict)


def operation(
    summary: str,
    *,
    request: Any = None,
    answer: str = "the answer",
    kinds: tuple[str, ...] = (JSON,),
    query: Mapping[str, str] | None = None,
) -> Callable[[Endpoint], Endpoint]:
    """A decorator for endpoints: see the module and Operation."""
    described = Operation(summary, request, answer, kinds, query or {})

    def note(endpoint: Endpoint) -> Endpoint:
        endpoint.operation = described  # type: ignore[attr-defined]  # functions take attributes
        return endpoint

    return note
