"""How much a model is asked to think, as variables of its chat template.

Templates have no common name for it: Qwen's and its like read `enable_thinking`, DeepSeek's and Granite's `thinking`, gpt-oss's
`reasoning_effort`. All are set; a template does not see the ones it does not read.
"""

from __future__ import annotations

from typing import Any, Final

OFF: Final = frozenset({"none", "off", "false"})
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def thinking(wish: str | bool | None) -> dict[str, Any]:
    """The variables for an effort ("none" for no thinking), for yes or no, or for no wish at all: the template's own default."""
    if wish is None:
        return {}
    thinks = wish is not False and wish not in OFF
    effort = {"reasoning_effort": wish} if thinks and isinstance(wish, str) else {}
    return {"enable_thinking": thinks, "thinking": thinks, **effort}
