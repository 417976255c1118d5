"""What an answer must look like, as the sampler needs it: a mask of the tokens that may come next.

Knows the kinds of constraint a request can name; must not know requests, logits or how a grammar is run (`guide` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from ggrun.errors import GgrunError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggrun.text import Tokenizer

KINDS: Final = ("json_object", "json_schema", "regex", "grammar", "lark")


class ConstraintError(GgrunError):
    """A schema, regular expression or grammar that is wrong, too large or asks for something that is not supported."""


class Constraint(Protocol):
    """The state of one answer that has to follow a grammar. Used by one thread at a time.

    done: nothing but an end-of-generation token may follow. It is known after `mask`, and mostly already after `accept`.
    """

    done: bool

    def mask(self) -> NDArray[np.uint32]:
        """Bit i % 32 of word i / 32: whether token i may come next; a token past the last word may not. Valid until `accept`.

        Waits for the computation in the background. GgrunError when the grammar became too complex, or allows no token at all.
        """

    def accept(self, id: int) -> None:
        """Note the token that was chosen, which is no end-of-generation token, and start computing the next mask.

        GgrunError for a token that the mask did not allow.
        """

    def copy(self) -> Constraint:
        """The same state for another answer."""


def constraint_for(kind: str, value: Any, tokenizer: Tokenizer) -> Constraint:
    """A constraint at its beginning; the first mask is on its way. May take up to a second: not for an event loop's thread.

    kind and value: "json_object" (None): any JSON object. "json_schema": a schema, as dict, bool or JSON text. "regex": a regular
    expression that the whole answer matches. "grammar": GBNF, llama.cpp's. "lark": a Lark grammar in llguidance's dialect.

    A Lark grammar is how calls of tools are held to their schemas: text between markers, special tokens by name or id, and JSON by
    schema as a rule of its own:

        start: <|python_tag|> call                                 // a special token, by its text: <|...|>
             | "<tool_call>\\n" call "\\n</tool_call>"             // plain text: also where it is one token that is no special one
        call: "{\\"name\\": \\"" NAME "\\", \\"arguments\\": " args "}"
        NAME: "add" | "subtract"
        args: %json {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"], "additionalProperties": false}

    Text that runs until a marker, so that the rest is held only once the model writes it ("lazy" ends a text as early as possible):

        start: prose (tail)?
        prose[lazy]: /(.|\\n)*/ "<tool_call>"
        tail: "\\n" call "\\n</tool_call>"

    ConstraintError, with a sentence that says what is wrong where, for a value that cannot be used.
    """
    from ggrun.engine.guide import guide_for

    if kind not in KINDS:
        raise ConstraintError(f"{kind!r:.60} is no kind of constraint; known are {', '.join(KINDS)}")
    return guide_for(tokenizer).begin(kind, value)
