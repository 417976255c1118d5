"""The GPUs of this machine as the planner sees them, or why there are none; a GPU that the user did not ask for is never an error."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from ggrun.plan.device import Place
from ggrun.plan.machine import Machine
from ggrun.runtime.cuda.device import CONTEXT_BYTES, OWN_BYTES, CudaDevice


@cache
def found() -> tuple[Place, ...]:
    """The usable GPUs with what is free on each, the guess of a context added; looked for once.

    Opens a context on each for a moment: the driver tells no other way.
    """
    from ggrun.runtime.cuda.driver import Device
    from ggrun.runtime.cuda.probe import Context, CudaMissing, probe

    def place(device: Device) -> Place:
        context = Context(device)
        try:
            free, total = context.memory()
        finally:
            context.close()
        return Place(CudaDevice(device.label, device.arch), total, free + CONTEXT_BYTES, device.name, device.cc)

    looked = probe()
    places = []
    for device in () if looked.problem else looked.devices:
        try:
            places.append(place(device))
        except CudaMissing as error:
            _problems.append(str(error))
    return tuple(places)


def look_again() -> None:
    """What was free on the GPUs is asked anew: something was loaded or unloaded since."""
    found.cache_clear()
    _problems.clear()


_problems: list[str] = []


def problem() -> str:
    """Why there is no usable GPU, as a sentence; "" when there is one."""
    from ggrun.runtime.cuda.probe import probe

    return "" if found() else probe().problem or "; ".join(_problems)


def worth_saying() -> str:
    """What a user who asked for no GPU should hear: there is one, and something that can be mended keeps it from being used."""
    from ggrun.runtime.cuda.probe import probe

    looked = probe()
    mendable = looked.gpus.ok or not (looked.driver.ok or looked.no_gpu)
    return "" if found() or not mendable else f"the GPU is not used: {problem()}"


def measured(places: tuple[Place, ...], machine: Machine) -> tuple[Place, ...]:
    """The places, with the driver's own share where it was measured, and no more free than there is.

    What is free was asked with a context open, which the ledger lists with the rest of the driver's share: it is added again.
    """
    result = []
    for place in places:
        speeds, device, context = machine.gpus.get(place.gpu), place.device, CONTEXT_BYTES
        if speeds and speeds.driver_bytes:
            assert isinstance(device, CudaDevice)
            device = CudaDevice(device.name, device.arch, speeds.driver_bytes)
            context = speeds.driver_bytes - (speeds.code_bytes or OWN_BYTES - CONTEXT_BYTES)
        free = min(place.total_bytes, place.free_bytes - CONTEXT_BYTES + context)
        result.append(replace(place, device=device, free_bytes=free))
    return tuple(result)
