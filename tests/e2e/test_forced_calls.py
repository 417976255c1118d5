"""The embedded model, whose template knows no tools, calls one when it has to; its call is told as it is written."""

import json
from pathlib import Path

import jsonschema

from ggrun import Engine, Sampling
from ggrun.engine.constraint import constraint_for
from ggrun.engine.schema import read_schema
from ggrun.text.deltas import CallDelta, Delta
from ggrun.text.output import OutputParser, output_style
from ggrun.text.tool_calls import call_grammar

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "lines": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "lines"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up a function of Python's.", "parameters": SCHEMA}}]


def test_a_forced_call(embedded: Path) -> None:
    with Engine.open(embedded, n_threads=1) as engine:
        style = output_style(engine.chat_template)
        assert style.calls[0].name == "generic"
        rendered = engine.chat_template.render([{"role": "user", "content": "What does os.path.join do?"}], TOOLS)
        assert "Looks up a function" in rendered.text
        grammar = call_grammar(style.calls[0], TOOLS, parallel=False, tokenizer=engine.tokenizer, prepare=read_schema)
        parser = OutputParser(style, TOOLS, prompt=rendered.text)
        deltas: list[Delta] = []
        generation = engine.submit(
            engine.tokenizer.encode(rendered.text, parse_special=True), Sampling(temperature=0, seed=1), n_predict=200,
            constraint=constraint_for("lark", grammar, engine.tokenizer), shown=style.shown_ids(engine.tokenizer), strip_space=True,
        )  # fmt: skip
        for event in generation:
            deltas += parser.push(event.text)
        deltas += parser.finish()
        assert generation.finish_reason == "stop"
        calls = [delta for delta in deltas if isinstance(delta, CallDelta)]
        assert deltas == calls
        assert len(calls) > 3, "told in pieces"
        assert (calls[0].name, calls[-1].state) == ("look_up", "done")
        jsonschema.validate(json.loads("".join(call.arguments for call in calls)), SCHEMA)
