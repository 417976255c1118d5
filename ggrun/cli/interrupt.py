"""Ctrl-C while a model computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """While the body runs, the first Ctrl-C calls `stop` and the next raises KeyboardInterrupt. Yields a question: was it pressed?"""
    pressed = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        stop()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # a shell starts what runs in its background so
        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def aborting(abort: Callable[[], None]) -> Iterator[None]:
    """While the body runs, Ctrl-C also calls `abort` at once.

    Python's own handler, which raises KeyboardInterrupt, has to wait until compiled code comes back to the main thread.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)

    def watch() -> None:
        while number := os.read(woken, 1):
            if number[0] == signal.SIGINT:
                abort()

    watcher = Thread(target=watch, name="ggrun-interrupt", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)
        watcher.join()
        os.close(woken)
