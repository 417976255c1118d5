"""docs/other-apis.md names every field of the requests it describes, and says refused of those that are."""

import re

import msgspec
import pytest

from ggrun.server import messages_request, ollama_request, responses_request
from ggrun.server.embeddings import EmbedRequest
from tests.conftest import REPO

PAGE = (REPO / "docs" / "other-apis.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
REQUESTS = [
    ("OpenAI's responses", responses_request.ResponsesRequest),
    ("Anthropic's messages", messages_request.MessagesRequest),
    ("Ollama's", ollama_request.ChatRequest),
    ("Ollama's", ollama_request.GenerateRequest),
    ("Ollama's", ollama_request.Options),
    ("Ollama's", EmbedRequest),
]


@pytest.mark.parametrize(("section", "kind"), REQUESTS)
def test_every_field_is_documented(section: str, kind: type[msgspec.Struct]) -> None:
    named = set(re.findall(r"`(?:options\.)?(\w+)[^`]*`", SECTIONS[section]))
    assert {field.encode_name for field in msgspec.structs.fields(kind)} <= named


@pytest.mark.parametrize(
    ("section", "refused"), [("OpenAI's responses", responses_request.REFUSED), ("Anthropic's messages", messages_request.REFUSED)]
)
def test_what_is_refused_is_called_so(section: str, refused: dict[str, str]) -> None:
    [row] = re.findall(r"^\| refused \| (.*) \|$", SECTIONS[section], re.MULTILINE)
    assert set(refused) <= set(re.findall(r"`(\w+)`", row))


def test_every_option_of_sampling_is_documented() -> None:
    assert set(re.findall(r"`(\w+)`", SECTIONS["Ollama's"])) >= ollama_request.SAMPLING
