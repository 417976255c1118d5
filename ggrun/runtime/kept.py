"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_base() -> Path:
    """GGRUN_CACHE_DIR, or the user's cache folder. Need not exist."""
    base = os.environ.get("GGRUN_CACHE_DIR")
    if base is None:
        from platformdirs import user_cache_path

        return Path(user_cache_path("ggrun"))
    return Path(base)
