"""GET /openapi.json: an OpenAPI 3.1 document of every route, made from the app's routes and the structs that decode its requests.

The convention for route modules: decorate endpoints with `ggrun.server.operation.operation`, which names the request's struct. Everything
else (paths, methods, path parameters, the schemas of bodies) is read from the routes and the structs. A route that should not be listed
(files of the page) is made with `include_in_schema=False`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ggrun import __version__
from ggrun.server.operation import JSON, Operation, operation

_PARAMETER: Final = re.compile(r"{(\w+)(?::(\w+))?}")
_CONVERTED: Final = {"int": "integer", "float": "number"}
_REF: Final = "#/components/schemas/{name}"
_ERROR: Final = {
    "description": "what was wrong, in the shape of the API that was asked: one sentence, and for a field its path",
    "content": {JSON: {"schema": {"type": "object"}}},
}


def document(routes: Iterable[BaseRoute], prefix: str = "") -> dict[str, Any]:
    """The document of these routes, whose paths all begin with the prefix.

    Raises ValueError for a listed route whose endpoint has no operation.
    """
    listed = [(route, _operation(route)) for route in routes if isinstance(route, Route) and route.include_in_schema]
    entries = [(route, method, described) for route, described in listed for method in _methods(route)]
    structs = list(dict.fromkeys(_request(described, method) for _, method, described in entries if _request(described, method)))
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REF)
    bodies = dict(zip(structs, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route, method, described in entries:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[method.lower()] = _entry(route, method, described, bodies)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ggrun", "version": __version__, "description": "A local server of language models (`ggrun serve`)."},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> Operation:
    described = getattr(route.endpoint, "operation", None)
    if not isinstance(described, Operation):
        raise ValueError(f"{route.path}: its endpoint {route.name!r} is not described by an operation")
    return described


def _methods(route: Route) -> list[str]:
    """Without HEAD, which Starlette adds to every GET."""
    return sorted(method for method in route.methods or () if method != "HEAD" or "GET" not in (route.methods or ()))


def _request(described: Operation, method: str) -> Any:
    return described.request.get(method) if isinstance(described.request, Mapping) else described.request if method != "GET" else None


def _entry(route: Route, method: str, described: Operation, bodies: Mapping[Any, Any]) -> dict[str, Any]:
    words = re.findall(r"\w+", f"{method.lower()} {route.path}")
    entry: dict[str, Any] = {"summary": described.summary, "operationId": "_".join(words)}
    if parameters := [*_path_parameters(route.path), *_query_parameters(described.query)]:
        entry["parameters"] = parameters
    if body := _request(described, method):
        entry["requestBody"] = {"required": True, "content": {JSON: {"schema": bodies[body]}}}
    content = {kind: {"schema": {} if kind == JSON else {"type": "string"}} for kind in described.kinds}
    return entry | {"responses": {"200": {"description": described.answer, "content": content}, "default": _ERROR}}


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name, converter in _PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": _CONVERTED.get(converter, "string")}}


def _query_parameters(query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, description in query.items():
        yield {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "string"}}


@operation("This document", answer="an OpenAPI 3.1 document of every route")
async def openapi(request: Request) -> Response:
    """GET /openapi.json. Made at the first request and kept."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = msgspec.json.encode(document(request.app.routes, state.settings.api_prefix))
    return Response(state.openapi, media_type=JSON)


ROUTES: Final = [Route("/openapi.json", openapi)]
