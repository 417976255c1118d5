"""Text: tokenizers built from a GGUF's metadata, incremental decoding, chat templates.

A leaf: knows metadata only as a mapping, and nothing of models, files or engines.
"""

from ggrun.text.decoder import IncrementalDecoder
from ggrun.text.error import TextError
from ggrun.text.template import ChatTemplate, RenderedChat
from ggrun.text.template_choice import chat_template
from ggrun.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ChatTemplate", "IncrementalDecoder", "RenderedChat", "TextError", "Tokenizer", "chat_template", "load_tokenizer"]
