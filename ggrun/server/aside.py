"""Work of a processor's, in threads of its own: rendering, tokenizing, compiling of grammars.

Apart from the loop's own threads, which wait for engines, so that a request that only needs reading is not held up by those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

T = TypeVar("T")
WORKERS: Final = 4


async def aside(work: Callable[[], T]) -> T:
    """The result of work, from another thread. Who is cancelled meanwhile does not wait for it."""
    return await asyncio.get_running_loop().run_in_executor(_workers(), work)


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="ggrun-aside")
