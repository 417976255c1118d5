"""docs/api.md names every field of the requests, and no other; what it calls refused is refused."""

import re

import msgspec
import pytest

from ggrun.server import fields, native_completion, openai_chat
from ggrun.server.native_completion import InfillRequest
from ggrun.server.openai_chat import ChatRequest
from ggrun.server.openai_completions import CompletionRequest
from tests.conftest import REPO

ROW = re.compile(r"^\| (`.*?`) \| (honoured|accepted|refused) \|")


def rows() -> dict[str, set[str]]:
    """Each field and what the tables say of it."""
    found: dict[str, set[str]] = {}
    for line in (REPO / "docs" / "api.md").read_text().splitlines():
        if match := ROW.match(line):
            for name in re.findall(r"`(\w+)`", match[1]):
                found.setdefault(name, set()).add(match[2])
    return found


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, InfillRequest])
def test_every_field_is_documented(kind: type[msgspec.Struct]) -> None:
    assert not names(kind) - set(rows())


def test_every_documented_field_exists() -> None:
    assert not set(rows()) - names(ChatRequest) - names(CompletionRequest) - names(InfillRequest)


def test_what_is_called_refused_is() -> None:
    refused = {name for name, words in rows().items() if "refused" in words}
    assert refused == {*fields.REFUSED, *openai_chat.REFUSED, *native_completion.REFUSED, "best_of"} - {"reasoning_format"}
