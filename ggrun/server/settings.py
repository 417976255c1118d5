"""What `ggrun serve` was told that is not the engine's business: who may ask, how much, how long, and what routes there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ReasoningFormat = Literal["auto", "none", "deepseek", "deepseek-legacy"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One server's. Seconds and bytes unless a name says otherwise; 0 or None where there is no limit.

    hosts: the addresses it listens at. api_prefix: what all paths begin with. allowed_hosts: more names a Host header may have.
    cors_origins: origins of other sites' pages that may ask ("*": any, "localhost": any page of this machine). timeout: for a whole answer.
    read_timeout: for a request to arrive. max_queue: requests that may wait for a slot of one model. sleep_idle: after so long without a
    request memory is freed (-1: never). context_shift, cache_prompt, reasoning_format, reasoning_budget (and the message that ends it),
    template, prefill_assistant: what requests have that do not say.
    """

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 8080
    api_prefix: str = ""
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    ssl: tuple[Path, Path] | None = None  # key, certificate
    cors_origins: tuple[str, ...] = ()
    strict_model: bool = False
    metrics: bool = False
    slots: bool = True
    props: bool = False
    webui: bool = True
    pooling: Pooling | None = None
    slot_save_path: Path | None = None
    context_shift: bool = False
    cache_prompt: bool = True
    reasoning_format: ReasoningFormat = "auto"
    reasoning_budget: int = -1
    reasoning_budget_message: str = ""
    prefill_assistant: bool = True
    template: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 3600.0
    read_timeout: float = 30.0
    shutdown_timeout: float = 5.0
    keep_alive: float = 10.0
    sleep_idle: float = -1.0
    max_body: int = 64 << 20
    max_headers: int = 64 << 10
    max_connections: int = 1024
    max_queue: int = 512
    verbose: bool = False

    @property
    def wide(self) -> bool:
        """Whether machines other than this one can reach it."""
        return not all(loopback(host) for host in self.hosts)


def loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    from ipaddress import ip_address

    bare = host.strip("[]").lower().rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ip_address(bare).is_loopback
    except ValueError:
        return False
