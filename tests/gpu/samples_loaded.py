"""The sample kernels through the stand-in compiler and PyCUDA: what tests of the driver's side need."""

from pathlib import Path
from typing import Any

from ggrun.runtime.cuda import nvrtc, probe, sources
from tests.gpu.emulation.samples import SAMPLES


def function(name: str, folder: Path) -> Any:
    """One sample kernel as PyCUDA has it; a context must be current."""
    unit = sources.unit("samples.cuh", [name], sources.texts() | {"samples.cuh": SAMPLES})
    compiler = nvrtc.find()
    module = sources.compile_unit(unit, compiler.target(86), compiler, folder)
    return probe.pycuda_driver().module_from_buffer(module.image).get_function(name)
