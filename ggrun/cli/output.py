"""The form an answer must have: a grammar or a JSON schema, given by a flag or in a file."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from ggrun.cli.options import flag
from ggrun.cli.prompt import text_of
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    from ggrun.engine.constraint import Constraint
    from ggrun.text import Tokenizer

_output = partial(flag, panel="Output")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What an answer must look like; one of them at most."""

    grammar: Annotated[
        str | None, _output("--grammar", metavar="GBNF", help="a GBNF grammar that every answer follows; see docs/structured-output.md")
    ] = None
    grammar_file: Annotated[str | None, _output("--grammar-file", metavar="FILE", help="a file that holds it")] = None
    json_schema: Annotated[
        str | None, _output("-j", "--json-schema", metavar="SCHEMA", help="a JSON schema that every answer follows; {}: any JSON")
    ] = None
    json_schema_file: Annotated[str | None, _output("-jf", "--json-schema-file", metavar="FILE", help="a file that holds it")] = None


Output = tuple[str, str]  # a kind of constraint, and its text

# field of OutputOptions -> its flag, its kind of constraint, and whether it names a file
_FLAGS = {
    "grammar": ("--grammar", "grammar", False),
    "grammar_file": ("--grammar-file", "grammar", True),
    "json_schema": ("-j", "json_schema", False),
    "json_schema_file": ("-jf", "json_schema", True),
}


def output_of(options: OutputOptions) -> Output | None:
    """The form that the flags ask for; None when they ask for none. Raises GgrunError when there are several."""
    given = {name: value for name in _FLAGS if (value := getattr(options, name)) is not None}
    if len(given) > 1:
        raise GgrunError(f"an answer can have one form only, and {' and '.join(_FLAGS[name][0] for name in given)} ask for several")
    for name, value in given.items():
        _, kind, in_file = _FLAGS[name]
        return kind, text_of(value) if in_file else value
    return None


def constraint_of(output: Output | None, tokenizer: "Tokenizer") -> "Constraint | None":
    """What holds one answer to a form. Raises GgrunError for a grammar or schema that cannot be used."""
    if output is None:
        return None
    from ggrun.engine.constraint import constraint_for

    return constraint_for(*output, tokenizer)
