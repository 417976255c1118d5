"""Work in a thread that does not keep the process from ending, as one of asyncio's would."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], unwanted: Callable[[T], object]) -> asyncio.Future[T]:
    """What `work` returns or raises, once it has. unwanted: gets the result, in that thread, when the future was cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(act: Callable[..., None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: None if done.done() else act(value))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            tell(done.set_exception, error)
        else:
            if done.cancelled() or loop.is_closed():
                unwanted(result)
            else:
                tell(done.set_result, result)

    threading.Thread(target=run, name="ggrun-background", daemon=True).start()
    return done
