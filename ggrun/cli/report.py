"""An answer as the one JSON object that --json prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggrun.engine.generation import Generation


def report(generation: Generation, model: str) -> str:
    """Text, ids, why it ended, timings under llama.cpp's names, and what is needed to repeat it, on one line."""
    answer = {
        "model": model,
        "seed": generation.seed,
        "text": generation.text,
        "ids": generation.ids,
        "n_prompt": len(generation.prompt_ids),
        "n_shifted": generation.n_shifted,
        "finish_reason": generation.finish_reason,
        "stop_word": generation.stop_word,
        "timings": generation.timings.as_dict(),
    }
    return json.dumps(answer, ensure_ascii=False)
