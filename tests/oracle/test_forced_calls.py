"""Models of random weights, which would say anything, call tools when they are made to: in each template's own format, by the schema."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.constraint import constraint_for
from ggrun.engine.schema import read_schema
from ggrun.text import ChatTemplate
from ggrun.text.output import output_style
from ggrun.text.tool_calls import call_grammar
from tests.conftest import shared_path
from tests.unit.tool_call_parts import parse, put_together, read_calls

# a model, and the templates it is made to follow
MODELS = {
    "qwen2.Q8_0": ["Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "google-gemma-4-31B-it"],
    "qwen3.Q8_0": ["Qwen-Qwen3-0.6B", "Qwen3.5-4B", "upstage-Solar-Open-100B", "openai-gpt-oss-120b"],
    "llama-gqa.Q8_0": ["meta-llama-Llama-3.1-8B-Instruct", "deepseek-ai-DeepSeek-V3.1", "HuggingFaceTB-SmolLM3-3B"],
    "mistral.Q8_0": ["mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506"],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "hours": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 23}, "maxItems": 4},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Tells it.", "parameters": SCHEMA}} for name in ("weather", "forecast")
]
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.mark.parametrize("model", MODELS)
def test_forced_calls(model: str) -> None:
    path: Path = shared_path("oracle", f"{model}.gguf")
    with Engine.open(path, n_ctx=1024, n_threads=1) as engine:
        for name in MODELS[model]:
            template = ChatTemplate(shared_path("templates", f"{name}.jinja").read_text(), "<s>", "</s>")
            style = output_style(template)
            prompt = template.render(MESSAGES, TOOLS).text
            ids = engine.tokenizer.encode(prompt, parse_special=True)[-100:]
            for seed, choice, parallel in ((1, "required", True), (2, "forecast", False)):
                # a model that knows nothing would never end a thought
                grammar = call_grammar(style.calls[0], TOOLS, choice, parallel, tokenizer=engine.tokenizer, prepare=read_schema)
                constraint = constraint_for("lark", grammar, engine.tokenizer)
                generation = engine.submit(
                    ids, Sampling(temperature=0.7, seed=seed), n_predict=900, constraint=constraint,
                    shown=style.shown_ids(engine.tokenizer), strip_space=True,
                ).wait()  # fmt: skip
                deltas = parse(style, list(generation.text), TOOLS)
                calls = read_calls(deltas)
                said, _, all_calls = put_together(deltas)
                if generation.finish_reason == "length":
                    assert parallel, "one call is not so long"
                    assert len(calls) > 1
                else:
                    assert (said, len(calls)) == ("", len(all_calls)), generation.text
                assert calls
                for called, arguments in calls:
                    assert called == "forecast" or choice == "required"
                    jsonschema.validate(arguments, SCHEMA)
                assert parallel or len(calls) == 1
