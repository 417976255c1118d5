"""GGUF files: names, metadata and where every tensor's bytes lie.

`open_gguf` reads, `GgufWriter` writes. This package knows the container and trusts nothing in it. It must not know what a
key or a tensor means to a model, and it never turns weights into numbers: that is `quant`'s.
"""

from ggrun.gguf.error import GgufError
from ggrun.gguf.mapping import LOAD_MODES
from ggrun.gguf.metadata import MetadataArray, Value
from ggrun.gguf.reader import GgufFile, open_gguf
from ggrun.gguf.tensor import Tensor
from ggrun.gguf.writer import GgufWriter

__all__ = ["LOAD_MODES", "GgufError", "GgufFile", "GgufWriter", "MetadataArray", "Tensor", "Value", "open_gguf"]
