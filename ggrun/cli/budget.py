"""What --ram-budget and --vram-budget leave for one more model of a server: they are limits of all its models together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakSet

from ggrun.engine import places
from ggrun.plan.pins import Pins
from ggrun.plan.rooms import usable

if TYPE_CHECKING:
    from ggrun import Engine


class Budget:
    """limits: the pins of the flags, in which the budgets of all stand. What models.toml gives a model is its own limit below them."""

    def __init__(self, limits: Pins) -> None:
        self._limits = limits
        self._engines: WeakSet[Engine] = WeakSet()

    def spend(self, engine: Engine) -> None:
        """Count what an engine takes until it is closed."""
        self._engines.add(engine)

    def left(self, own: Pins) -> Pins:
        """A model's pins with no larger budgets than what the open ones leave."""
        ram, vram = self._limits.ram_budget, self._limits.vram_budget
        if ram:
            cpu = places.cpu().device
            shared = cpu.process_bytes(0)  # each plan counts the process itself
            ram = max(1, ram - self._taken(cpu.name, shared))  # 0 would be no limit
            own = replace(own, ram_budget=min(ram, own.ram_budget or ram))
        if vram:
            names = [place.device.name for place in usable((places.cpu(), *places.gpus()), own)[1:]]
            if names and len(vram) in (1, len(names)):
                rooms = [limit - self._taken(name) for name, limit in zip(names, vram if len(vram) > 1 else vram * len(names))]
                limits = own.vram_budget or tuple(rooms)
                own = replace(own, vram_budget=tuple(max(1, min(room, limits[i % len(limits)])) for i, room in enumerate(rooms)))
        return own

    def _taken(self, device: str, shared: int = 0) -> int:
        """Bytes of a device that open models take. shared: of them that a model to come has in its plan, too."""
        return sum(max(0, engine.plan.ledger.total(device) - shared) for engine in tuple(self._engines) if not engine.closed)
