"""Writes the tables of README.md, docs/bench.md and docs/tool-calls.md from the registries of the code: `python scripts/readme_tables.py`.

A test holds the pages to what this prints, so after a new architecture, format, command or flag of `ggrun bench` run it and commit them.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggrun.cli.app import COMMANDS  # noqa: E402
from ggrun.cli.bench import BenchOptions  # noqa: E402
from ggrun.cli.options import rows_of  # noqa: E402
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
    lines = []
    panel = ""
    for field in rows_of(BenchOptions):
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


PAGES = {ROOT / "README.md": supported, ROOT / "docs" / "bench.md": bench_flags, ROOT / "docs" / "tool-calls.md": call_formats}


def page_with(text: str, part: str) -> str:
    """The page with its written part replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + part + END + rest.partition(END)[2]


if __name__ == "__main__":
    for page, part in PAGES.items():
        page.write_text(page_with(page.read_text(), part()))
