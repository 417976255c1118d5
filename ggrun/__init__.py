"""ggrun: runs one GGUF file on one person's machine, using all of it.

The Python API is `Engine` and `Sampling`; both are imported on first use, so that `import ggrun` (and `ggrun --help`)
loads neither NumPy nor Numba.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggrun.engine.engine import Engine as Engine
    from ggrun.engine.sampling import Sampling as Sampling

__version__ = "0.1.0"
__all__ = ["Engine", "Sampling", "__version__"]

_WHERE = {"Engine": "ggrun.engine.engine", "Sampling": "ggrun.engine.sampling"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'ggrun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
