"""Tool calls as models write them: the formats, which one a template's model uses, reading them, and grammars that force them."""

from ggrun.text.tool_calls.derive import format_for, formats_for
from ggrun.text.tool_calls.formats import FORMATS, GENERIC, HARMONY, CallFormat

__all__ = ["FORMATS", "GENERIC", "HARMONY", "CallFormat", "format_for", "formats_for"]
