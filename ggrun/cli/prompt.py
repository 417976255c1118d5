"""Where a prompt comes from: -p, -f, a pipe. Text in, text out; knows nothing of models."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ggrun.cli.options import PromptOptions
from ggrun.errors import GgrunError

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def prompt_of(options: PromptOptions) -> str | None:
    """The prompt that -p or -f gives; None when neither is there. Raises GgrunError when both are."""
    if options.prompt is not None and options.file is not None:
        raise GgrunError("the prompt is given twice, by -p and by -f; give it once")
    if options.file is not None:
        return text_of(options.file)
    if options.prompt is None:
        return None
    return piped() if options.prompt == "-" else typed(options.prompt, options.escape)


def system_of(options: PromptOptions) -> str | None:
    """The system prompt that -sys or -sysf gives; None when neither is there."""
    if options.system is not None and options.system_file is not None:
        raise GgrunError("the system prompt is given twice, by -sys and by -sysf; give it once")
    if options.system_file is not None:
        return text_of(options.system_file)
    return None if options.system is None else typed(options.system, options.escape)


def stops_of(options: PromptOptions) -> tuple[str, ...]:
    """The texts of -r, in order."""
    return tuple(text for text in (typed(item, options.escape) for item in options.reverse_prompt or ()) if text)


def template_of(options: PromptOptions) -> str | None:
    """The Jinja source or name that --chat-template, or the source that --chat-template-file gives; None: the model's own."""
    if options.chat_template is not None and options.chat_template_file is not None:
        raise GgrunError("the chat template is given twice, by --chat-template and by --chat-template-file; give it once")
    if options.chat_template_file is not None:
        return text_of(options.chat_template_file)
    return options.chat_template


def typed(text: str, escape: bool) -> str:
    """Text from the command line: escapes read when wanted, bytes that are no UTF-8 replaced."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unescaped(text) if escape else text


def unescaped(text: str) -> str:
    r"""\n, \r, \t, \', \", \\ and \xHH read as llama.cpp reads them; any other backslash stays."""
    return re.sub(r"\\(?:x([0-9A-Fa-f]{2})|([nrt'\"\\]))", lambda m: chr(int(m[1], 16)) if m[1] else _ESCAPES[m[2]], text)


def text_of(name: str) -> str:
    """The text of a file, or of the pipe when it is called -; without the newline that ends it."""
    if name == "-":
        return piped()
    try:
        return _decoded(Path(name).expanduser().read_bytes(), name)
    except OSError as error:
        raise GgrunError(f"{name} cannot be read: {error.strerror}") from None


def at_terminal() -> bool:
    """Whether a person can be typing."""
    return sys.stdin is not None and sys.stdin.isatty()


def piped(whole: bool = False) -> str:
    """Everything on standard input, without the newline that ends it unless `whole`."""
    return _decoded(sys.stdin.buffer.read() if sys.stdin else b"", "what was piped in", whole)


def _decoded(data: bytes, name: str, whole: bool = False) -> str:
    try:
        text = data.decode("utf-8" if whole else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise GgrunError(f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from None
    return text if whole else text.removesuffix("\n").removesuffix("\r")
