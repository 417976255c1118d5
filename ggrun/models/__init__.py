"""Architectures: one short function each, from metadata and tensors to a Program. The only place that knows architecture names."""

from ggrun.models.registry import REGISTRY, build_program
from ggrun.models.spec import LayerSpec, ModelSpec

__all__ = ["REGISTRY", "LayerSpec", "ModelSpec", "build_program"]
