"""`ggrun logits`: the model's raw scores for given token ids, as a NumPy file; for scripts and tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ggrun.cli.options import EngineOptions, Executor, ModelArgument
from ggrun.errors import GgrunError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def logits(
    model: ModelArgument = None,
    *,
    engine_options: EngineOptions,
    tokens: Annotated[str, typer.Option("--tokens", metavar="1,2,3|FILE.npy", help="the ids, or a NumPy file of them")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npy", help="where float32 \\[n_tokens, n_vocab] is written")],
    executor: Annotated[Executor, typer.Option("--executor", help="what computes them")] = "auto",
) -> None:
    """Write the logits of every position of a sequence of token ids."""
    import numpy as np

    from ggrun.cli.opening import chosen, opened
    from ggrun.cli.screen import Screen

    screen = Screen()
    ids = token_ids(tokens)
    more = {"executor": executor, "n_logits": max(1, min(len(ids), engine_options.n_ubatch or 512))}
    with opened(chosen(model, engine_options.model_flag, screen), engine_options, screen, **more) as engine:
        scores = engine.forward(ids.tolist())
    try:
        with out.open("wb") as file:
            np.save(file, scores, allow_pickle=False)
    except OSError as error:
        raise GgrunError(f"{out} cannot be written: {error.strerror}") from None


def token_ids(text: str) -> "NDArray[np.integer]":
    """The ids of "1,2,3", or of a .npy file that holds a list of whole numbers. Pickled files are refused unread."""
    import numpy as np

    if not text.endswith(".npy"):
        try:
            return np.array([int(part) for part in text.replace(",", " ").split()], np.int64)
        except (ValueError, OverflowError):
            raise GgrunError(f"--tokens {text!r} is neither a list of numbers such as 1,2,3 nor a .npy file") from None
    try:
        with np.errstate(over="ignore"):
            ids = np.load(text, mmap_mode="r", allow_pickle=False)  # mapped, so that a header that lies allocates nothing
    except OSError as error:
        raise GgrunError(f"{text} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, OverflowError) as error:
        raise GgrunError(f"{text} is not a NumPy file of numbers: {' '.join(str(error).split())}") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise GgrunError(f"{text} does not hold a list of token ids: whole numbers in one dimension are needed")
    return ids
