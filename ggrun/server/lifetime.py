"""How far along the server's life is: what streams and whole answers look at to know that they must end."""

from __future__ import annotations

import asyncio


class Lifetime:
    """stopping: no more requests are taken. cut: answers that are not done end now."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.cut = asyncio.Event()
