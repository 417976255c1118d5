"""The one base class of errors a person at the keyboard is meant to read.

Knows nothing else of ggrun, so that every layer may import it.
"""


class GgrunError(Exception):
    """A sentence that says what was wrong, where (file, tensor, flag), and what to do about it."""
