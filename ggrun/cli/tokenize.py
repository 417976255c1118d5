"""`ggrun tokenize`: a text as the model's token ids."""

import json
from typing import Annotated

import typer

from ggrun.cli.options import ModelFlag
from ggrun.errors import GgrunError


def tokenize(
    arguments: Annotated[list[str], typer.Argument(metavar="[MODEL] TEXT", help="the model and the text; - reads a pipe")],
    *,
    model_flag: ModelFlag = None,
    ids: Annotated[bool, typer.Option("--ids", help="print the ids as one JSON list")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="leave out the tokens the model adds by itself")] = False,
    parse_special: Annotated[bool, typer.Option("--parse-special", help="read special tokens such as <|im_end|> in the text")] = False,
) -> None:
    """Print the token ids of a text, and the piece each stands for."""
    from ggrun.cli.opening import chosen
    from ggrun.cli.prompt import piped, typed
    from ggrun.cli.screen import Screen

    *before, text = arguments
    if len(before) > (0 if model_flag else 1):
        raise GgrunError("tokenize takes a model and one text, in quotes; - reads the text from a pipe")
    model = chosen(before[0] if before else None, model_flag, Screen())
    # a pipe's text is taken to the byte: no newline is dropped here
    content = piped(whole=True) if text == "-" else typed(text, escape=False)

    from ggrun.engine.loading import embedded_model
    from ggrun.gguf import open_gguf
    from ggrun.text import load_tokenizer

    with open_gguf(model.path or embedded_model()) as file:
        tokenizer = load_tokenizer(file.metadata)
        found = tokenizer.encode(content, add_special=not no_bos, parse_special=parse_special)
        if ids:
            print(json.dumps(found))
        else:
            for token in found:
                print(f"{token:>7} -> {tokenizer.token_bytes(token).decode('utf-8', 'backslashreplace')!r}")
