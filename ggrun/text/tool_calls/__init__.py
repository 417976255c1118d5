"""Tool calls as models write them: the formats, which one a template's model uses, reading them, and grammars that force them."""

from ggrun.text.tool_calls.derive import format_for, formats_for
from ggrun.text.tool_calls.formats import FORMATS, GENERIC, HARMONY, CallFormat
from ggrun.text.tool_calls.grammar import call_grammar

__all__ = ["FORMATS", "GENERIC", "HARMONY", "CallFormat", "call_grammar", "format_for", "formats_for"]
