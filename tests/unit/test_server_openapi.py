"""The OpenAPI document is made from routes and structs."""

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ggrun.server import openapi
from ggrun.server.app import create_app
from ggrun.server.operation import operation
from ggrun.server.settings import Settings
from tests.unit.server_pieces import NoShelf


class Part(msgspec.Struct):
    text: str


class Ask(msgspec.Struct):
    parts: list[Part]
    n: int = 1


@operation("Ask", request={"POST": Ask}, query={"slow": "take your time"}, kinds=("application/json", "text/event-stream"))
async def ask(request: Request) -> Response:
    return Response()


async def silent(request: Request) -> Response:
    return Response()


def test_routes_methods_parameters_and_bodies_are_in_the_document() -> None:
    made = openapi.document([Route("/ask/{id:int}/{name}", ask, methods=["GET", "POST"]), Route("/x.js", silent, include_in_schema=False)])
    assert list(made["paths"]) == ["/ask/{id}/{name}"]
    entries = made["paths"]["/ask/{id}/{name}"]
    assert sorted(entries) == ["get", "post"]
    assert "requestBody" not in entries["get"]
    assert entries["post"]["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Ask"}
    assert [(p["name"], p["in"], p["schema"]["type"]) for p in entries["post"]["parameters"]] == [
        ("id", "path", "integer"),
        ("name", "path", "string"),
        ("slow", "query", "string"),
    ]
    assert set(entries["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(made["components"]["schemas"]) == {"Ask", "Part"}
    assert len({entries[m]["operationId"] for m in entries}) == 2


def test_a_route_nobody_described_is_an_error() -> None:
    with pytest.raises(ValueError, match="/quiet"):
        openapi.document([Route("/quiet", silent)])


def test_the_document_is_served() -> None:
    app = Starlette(routes=[*openapi.ROUTES, Route("/ask", ask, methods=["POST"])])
    app.state.settings = Settings()
    client = TestClient(app)
    for _ in range(2):
        assert set(client.get("/openapi.json").json()["paths"]) == {"/openapi.json", "/ask"}


def test_every_route_of_the_server_is_in_its_document() -> None:
    app = create_app(NoShelf(), Settings())
    made = openapi.document(app.routes)
    listed = [route for route in app.routes if getattr(route, "include_in_schema", True)]
    assert listed
    assert {route.path for route in listed if "{" not in route.path} <= set(made["paths"])
    assert sum(map(len, made["paths"].values())) == sum(len(route.methods - {"HEAD"}) for route in listed)
    ids = [entry["operationId"] for path in made["paths"].values() for entry in path.values()]
    assert len(set(ids)) == len(ids)
