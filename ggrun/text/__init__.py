"""Text: tokenizers built from a GGUF's metadata, incremental decoding, chat templates.

A leaf: knows metadata only as a mapping, and nothing of models, files or engines.
"""

from ggrun.text.decoder import IncrementalDecoder
from ggrun.text.error import TextError
from ggrun.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["IncrementalDecoder", "TextError", "Tokenizer", "load_tokenizer"]
