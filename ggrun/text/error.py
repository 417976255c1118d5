"""The error of this package: a tokenizer or chat template that cannot be used, in one sentence."""

from ggrun.errors import GgrunError


class TextError(GgrunError):
    """Names the metadata key or template that is at fault."""
