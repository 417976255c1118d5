"""The command `ggrun`: the table of its commands, and the one place where an error becomes a sentence and an exit code.

Exit codes: 0 done, 1 an error, 2 a wrong command line, 130 stopped with Ctrl-C, 141 the reader of our output went away.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from ggrun import __version__
from ggrun.cli.bench import bench
from ggrun.cli.chat import chat
from ggrun.cli.doctor import doctor
from ggrun.cli.logits import logits
from ggrun.cli.options import ReaderGone, command
from ggrun.cli.plan import plan
from ggrun.cli.run import run
from ggrun.cli.serve import serve
from ggrun.cli.show import show
from ggrun.cli.tokenize import tokenize
from ggrun.cli.trace import trace
from ggrun.cli.tune import tune
from ggrun.errors import GgrunError

COMMANDS = (chat, run, serve, bench, show, plan, doctor, tune, tokenize, logits, trace)
UsageError: Any = typer.BadParameter.__bases__[0]  # Typer brings its own copy of Click in some versions; this one is the one it raises


class Command(TyperCommand):
    """A command whose one-letter flags cannot be glued to a value or to each other, so that -foo is never taken for -f oo."""

    def make_parser(self, ctx: Any) -> Any:
        parser: Any = super().make_parser(ctx)
        parser._long_opt |= parser._short_opt

        def unknown(name: str, state: object) -> NoReturn:
            from difflib import get_close_matches

            near = " or ".join(get_close_matches(name, parser._long_opt, n=2))
            raise UsageError(f"No such option: {name}" + (f"; did you mean {near}?" if near else ""), ctx)

        parser._match_short_opt = unknown
        return parser


class Group(TyperGroup):
    """The top of the help is written plainly: loading rich would take longer than all else."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


class TextCommand(Command):
    """A command whose last argument is a text, also when it begins like a flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {"-", "--", *(name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts))}
        if args and args[-1].startswith("-") and args[-1] not in flags:
            args = args if "--" in args else [*args[:-1], "--", args[-1]]
        return super().parse_args(ctx, args)


class ServeCommand(Command):
    """A command that also knows llama-server's flags it has not: accepted with a note, or refused by name (`llama_server.FLAGS`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for parameter in self.get_params(ctx):  # llama.cpp's other ways to write yes and no
            name = parameter.envvar if isinstance(parameter.envvar, str) else ""
            if name and getattr(parameter, "is_flag", False):
                opposite = name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
                value = "disabled" if opposite in os.environ else os.environ.get(name, "").lower()
                if value in ("enabled", "disabled"):
                    os.environ[name] = "1" if value == "enabled" else "0"
        return super().parse_args(ctx, args)

    def make_parser(self, ctx: Any) -> Any:
        parser: Any = super().make_parser(ctx)
        match = parser._match_long_opt

        def known(name: str, value: str | None, state: Any) -> None:
            from ggrun.cli.llama_server import FLAGS, answer

            if name in parser._long_opt or name not in FLAGS:
                match(name, value, state)
                return
            n = FLAGS[name].n_values
            values = [value] if value is not None else [state.rargs.pop(0) for _ in range(min(n, len(state.rargs)))]
            print(answer(name, values), file=sys.stderr)

        parser._match_long_opt = known
        return parser


app = typer.Typer(
    name="ggrun",
    cls=Group,
    help="Runs one GGUF file on this machine. `ggrun chat` talks to the model that comes along; `ggrun chat model.gguf` to yours.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
KINDS: dict[Any, type[Command]] = {tokenize: TextCommand, serve: ServeCommand}
for function in COMMANDS:
    app.command(function.__name__, cls=KINDS.get(function, Command))(command(function))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ggrun {__version__}")
        raise typer.Exit


@app.callback()
def _common(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="print the version")) -> None: ...


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line (default: this process's) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long-lived as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no character is worth a traceback
    sys.exit(_run(arguments or ["--help"]))


def _run(arguments: list[str]) -> int:
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="ggrun", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (ReaderGone, BrokenPipeError):
        _drop_output()
        return 141
    except BaseException as error:
        if os.environ.get("GGRUN_DEBUG") == "1":
            raise
        sentence, code = _told(error)
        if isinstance(error, OSError):
            _drop_output()
        if sentence:
            print(sentence, file=sys.stderr)
        return code


def _drop_output() -> None:
    """What is still buffered for stdout must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: BaseException) -> tuple[str, int]:
    """The sentence for the person at the keyboard, and the exit code."""
    match error:
        case GgrunError():
            return f"error: {error}", 1
        case UsageError():
            name = error.ctx.command_path if error.ctx else "ggrun"
            return f"error: {error.format_message().rstrip('.')} ({name} --help lists what there is)", 2
        case KeyboardInterrupt() | typer.Abort():
            return "", 130
        case SystemExit():
            return "", error.code if isinstance(error.code, int) else 1
        case OSError() if error.filename is not None:
            return f"error: {error.filename}: {error.strerror or error}", 1
        case OSError():
            return f"error: {error.strerror or error}", 1
        case MemoryError():
            return "error: out of memory; a smaller context (-c) or a smaller quantization takes less", 1
        case _:
            text = " ".join(str(error).split()) or "no details"
            return f"error: something in ggrun went wrong ({type(error).__name__}: {text}); GGRUN_DEBUG=1 shows where, please report it", 1
