"""`--grammar`, `-j` and their files in the real command line, on the embedded model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def ggrun(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ggrun", *arguments], input=stdin, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_answer_has_the_form(command: str, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "g.gbnf").write_text('root ::= [a-c]{3} "-" ("yes" | "no")\n')
    arguments = (command, "-p", "what is a list?", "-n", "200", "-s", "3")
    for extra in (("-j", json.dumps(SCHEMA)), ("-jf", str(tmp_path / "schema.json"))):
        done = ggrun(*arguments, *extra)
        assert done.returncode == 0, done.stderr
        jsonschema.validate(json.loads(done.stdout), SCHEMA)
    for extra in (("--grammar", 'root ::= [a-c]{3} "-" ("yes" | "no")'), ("--grammar-file", str(tmp_path / "g.gbnf"))):
        done = ggrun(*arguments, *extra)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch("[a-c]{3}-(yes|no)\n?", done.stdout)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("-j", "{}", "--grammar", 'root ::= "a"'), ("--grammar", "-j", "one form")),
        (("-j", "{"), ("JSON schema", "line 1")),
        (("-j", '{"properties": {"x": {"not": {}}}}'), ('"not" is not supported', "#/properties/x")),
        (("--grammar", "root ::= item"), ("item",)),
        (("-jf", "/nonexistent.json"), ("/nonexistent.json",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_what_cannot_be_used_is_a_sentence(command: str, extra: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = ggrun(command, "-p", "hello", "-n", "5", *extra)
    assert done.returncode == 1
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
