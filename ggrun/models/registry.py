"""The table of architectures and the way from a file's metadata and tensors to a verified Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ggrun.models import llama, qwen
from ggrun.models.spec import ModelSpec, SpecError, read_spec
from ggrun.program.builder import Builder
from ggrun.program.program import Program, ProgramError, TensorLike
from ggrun.program.verify import verify
from quant.format import FORMATS


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture function and the model families it runs, for the tables a user reads."""

    build: Callable[[ModelSpec, Builder], None]
    families: str


REGISTRY: dict[str, Architecture] = {
    "llama": Architecture(llama.llama, "Llama 1, 2, 3.x, Mistral, Mixtral, TinyLlama, SmolLM and others stored as `llama`"),
    "qwen2": Architecture(qwen.qwen2, "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen"),
    "qwen3": Architecture(qwen.qwen3, "Qwen3 dense"),
}


def build_program(metadata: Mapping[str, object], tensors: Mapping[str, TensorLike]) -> tuple[ModelSpec, Program]:
    """Read the spec and build the verified program of a file. Raises SpecError or ProgramError, naming the key, tensor or format."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise SpecError("metadata key general.architecture is missing: the file does not say what model it holds")
    if architecture not in REGISTRY:
        raise SpecError(f"architecture {architecture!r} is not supported; supported are: {', '.join(REGISTRY)}")
    unreadable = sorted({t.format.name for t in tensors.values() if t.format.id not in FORMATS})
    if unreadable:
        raise ProgramError(
            f"the file has tensors in {', '.join(unreadable)}, which cannot be computed with; "
            f"supported are: {', '.join(f.name for f in FORMATS.values())}"
        )
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.dims) < 2:
        raise ProgramError("tensor token_embd.weight is missing: the file has no weights (a vocabulary-only file?) and cannot be run")
    spec = read_spec(metadata, architecture, embedding.dims[1])
    builder = Builder(tensors, spec.n_vocab)
    REGISTRY[architecture].build(spec, builder)
    return spec, verify(builder.build())
