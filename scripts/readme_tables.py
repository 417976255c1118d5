"""Writes the tables of README.md, docs/bench.md, docs/serve.md and docs/tool-calls.md from the code's registries: scripts/readme_tables.py.

A test holds the pages to what this prints, so after a new architecture, format, command or flag of `ggrun bench` or `serve` run it and
commit them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggrun.cli.app import COMMANDS  # noqa: E402
from ggrun.cli.bench import BenchOptions  # noqa: E402
from ggrun.cli.llama_server import ACCEPTED, REFUSED  # noqa: E402
from ggrun.cli.options import rows_of  # noqa: E402
from ggrun.cli.serve_options import (  # noqa: E402
    AnswerOptions,
    CacheOptions,
    LimitOptions,
    ListenOptions,
    RouteOptions,
    ServedEngineOptions,
)
from ggrun.models import REGISTRY  # noqa: E402
from ggrun.text.tool_calls import FORMATS as CALL_FORMATS  # noqa: E402
from ggrun.text.tool_calls import HARMONY  # noqa: E402
from quant.format import FORMATS  # noqa: E402

BEGIN, END = "<!-- written by scripts/readme_tables.py -->\n", "<!-- end of the written part -->\n"


def supported() -> str:
    """Commands, architectures, formats."""
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `ggrun {command.__name__}` | {(command.__doc__ or '').splitlines()[0].rstrip('.')} |" for command in COMMANDS]
    lines += ["", "| architecture | models stored so |", "|---|---|"]
    lines += [f"| `{name}` | {architecture.families} |" for name, architecture in REGISTRY.items()]
    lines += ["", "| weights | " + " | ".join(f"`{fmt.name}`" for fmt in FORMATS.values()) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    lines += ["| bits each | " + " | ".join(f"{fmt.bits_per_weight:g}" for fmt in FORMATS.values()) + " |", ""]
    return "\n".join(lines)


def bench_flags() -> str:
    """The flags of `ggrun bench`, by topic."""
    return flags_of(BenchOptions)


def serve_flags() -> str:
    """The flags only `ggrun serve` has, by topic; and how llama-server's others are answered."""
    own = ServedEngineOptions.__annotations__
    tables = (ListenOptions, RouteOptions, ServedEngineOptions, CacheOptions, AnswerOptions, LimitOptions)
    lines = [flags_of(*tables, leave=lambda table, name: table is ServedEngineOptions and name not in own)]
    for title, table in (("accepted, without effect", ACCEPTED), ("refused", REFUSED)):
        lines += [f"| {title} | what is said |", "|---|---|"]
        lines += [f"| {', '.join(f'`{name}`' for name in names(flags))} | {answer} |" for answer, flags in table.items()]
        lines.append("")
    return "\n".join(lines)


def names(flags: str) -> list[str]:
    """The flags of a row of `llama_server`'s tables, without values and variables; of a long row a few."""
    found = [text.partition("=")[0].split()[0] for text in flags.split(",")]
    return found if len(found) <= 16 else [*found[:6], "...", *found[-2:]]


def flags_of(*tables: Any, leave: Callable[[Any, str], bool] = lambda table, name: False) -> str:
    """The flags of tables, by topic."""
    lines = []
    panel = ""
    for field in (row for table in tables for row in rows_of(table) if not leave(table, row.name)):
        flag = field.type.__metadata__[0]
        if flag.rich_help_panel != panel:
            panel = flag.rich_help_panel
            lines += ["", f"| {panel.lower()} | | default |", "|---|---|---|"]
        names = ", ".join(f"`{name}`" for name in (flag.default, *flag.param_decls))  # Typer keeps the first name there
        lines.append(f"| {names} | {flag.help} | {flag.show_default or ''} |")
    return "\n".join([*lines[1:], ""])


def call_formats() -> str:
    """How models write tool calls."""
    lines = ["| format | models | a call |", "|---|---|---|"]
    for row in (*CALL_FORMATS, HARMONY):
        argument = f", each argument {_inline(row.argument)}" if row.argument else ""
        around = f", all between {_inline(row.first)} and {_inline(row.last)}" if row.first else ""
        lines.append(f"| `{row.name}` | {row.families} | {_inline(row.call)}{argument}{around} |")
    return "\n".join([*lines, ""])


def _inline(text: str) -> str:
    """Code in a table's cell, between as many marks as it needs."""
    marks = "````" if "```" in text else "`"
    space = " " if "```" in text else ""
    code = text.strip().replace("\n", "↵").replace("|", "\\|")
    return f"{marks}{space}{code}{space}{marks}"


PAGES = {
    ROOT / "README.md": supported,
    ROOT / "docs" / "bench.md": bench_flags,
    ROOT / "docs" / "serve.md": serve_flags,
    ROOT / "docs" / "tool-calls.md": call_formats,
}


def page_with(text: str, part: str) -> str:
    """The page with its written part replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + part + END + rest.partition(END)[2]


if __name__ == "__main__":
    for page, part in PAGES.items():
        page.write_text(page_with(page.read_text(), part()))
