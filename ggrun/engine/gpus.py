"""The GPUs of this machine as the planner sees them, or why there are none; a GPU that the user did not ask for is never an error."""

from __future__ import annotations

from functools import cache

from ggrun.plan.device import Place
from ggrun.plan.machine import Machine
from ggrun.runtime.cuda.device import CONTEXT_BYTES, OWN_BYTES, CudaDevice


@cache
def found() -> tuple[Place, ...]:
    """The usable GPUs with what is free on each; looked for once. Opens a context on each for a moment: the driver tells no other way."""
    from ggrun.runtime.cuda.driver import Device
    from ggrun.runtime.cuda.probe import Context, CudaMissing, probe

    def place(device: Device) -> Place:
        context = Context(device)
        try:
            free, total = context.memory()
        finally:
            context.close()
        return Place(CudaDevice(device.label, device.arch), total, min(total, free + CONTEXT_BYTES), device.name, device.cc)

    looked = probe()
    places = []
    for device in () if looked.problem else looked.devices:
        try:
            places.append(place(device))
        except CudaMissing as error:
            _problems.append(str(error))
    return tuple(places)


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
    """The places, with the driver's own share where it was measured."""
    result = []
    for place in places:
        speeds = machine.gpus.get(place.gpu)
        own = speeds.driver_bytes if speeds else 0
        assert isinstance(place.device, CudaDevice)
        device = CudaDevice(place.device.name, place.device.arch, own or OWN_BYTES)
        free = min(place.total_bytes, place.free_bytes + (own - OWN_BYTES if own else 0))
        result.append(Place(device, place.total_bytes, free, place.gpu, place.compute_capability))
    return tuple(result)
