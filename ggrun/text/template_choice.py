"""Which chat template a file is given: the caller's, the file's own, or one of the well-known ones.

Knows the metadata keys and the built-in templates by name; must not know how a template is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ggrun.text.error import TextError
from ggrun.text.template import ChatTemplate

if TYPE_CHECKING:
    from ggrun.text.tokenizer import Tokenizer

KEY: Final = "tokenizer.chat_template"

_TURN = "{{% for m in messages %}}{begin}{{{{ m.role }}}}{after_role}{{{{ m.content | trim }}}}{end}{{% endfor %}}" + (
    "{{% if add_generation_prompt %}}{begin}assistant{after_role}{{% endif %}}"
)
# name -> a token that only its models have, and the template
BUILT_IN: Final[dict[str, tuple[str, str]]] = {
    "chatml": ("<|im_start|>", _TURN.format(begin="<|im_start|>", after_role="\n", end="<|im_end|>\n")),
    "llama3": (
        "<|start_header_id|>",
        "{{ bos_token }}" + _TURN.format(begin="<|start_header_id|>", after_role="<|end_header_id|>\n\n", end="<|eot_id|>"),
    ),
    "phi3": ("<|assistant|>", _TURN.format(begin="<|", after_role="|>\n", end="<|end|>\n")),
    "gemma": (
        "<start_of_turn>",
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    "mistral": (
        "[INST]",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}",
    ),
    "plain": (
        "",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content | trim }}\n\n{% else %}{{ m.role | capitalize }}: "
        "{{ m.content | trim }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    ),
}


def chat_template(metadata: Mapping[str, object], tokenizer: Tokenizer, source: str | None = None) -> ChatTemplate:
    """The template to chat with. source: Jinja or the name of a built-in one, instead of the file's own.

    TextError for a template that is no valid Jinja, and for an unknown name.
    """
    bos, eos = (tokenizer.token_text(id_) if id_ is not None else "" for id_ in (tokenizer.bos_id, tokenizer.eos_id))
    if source is not None:
        return ChatTemplate(_named(source), bos, eos)
    own, tools = (_text(metadata, key) for key in (KEY, f"{KEY}.tool_use"))
    own = own or _text(metadata, f"{KEY}.default")
    if own:
        return ChatTemplate(own, bos, eos, tools)
    name = next(name for name, (token, _) in BUILT_IN.items() if not token or tokenizer.token_id(token) is not None)
    return ChatTemplate(BUILT_IN[name][1], bos, eos, note=f"the file has no chat template: ggrun uses its own, {name!r}")


def _named(source: str) -> str:
    if "{" in source:
        return source
    try:
        return BUILT_IN[source.strip()][1]
    except KeyError:
        raise TextError(
            f"the chat template {source.strip()!r:.60} is neither Jinja nor the name of one: known names are {', '.join(BUILT_IN)}"
        ) from None


def _text(metadata: Mapping[str, object], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise TextError(f"{key} must be a string, the file has {value!r:.60}")
    return value or None
