"""Writes the README's tables of what is supported, from the registries of the code: `python scripts/readme_tables.py`.

A test holds the README to what this prints, so after a new architecture, format or command run it and commit the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggrun.cli.app import COMMANDS  # noqa: E402
from ggrun.models import REGISTRY  # noqa: E402
from quant.format import FORMATS  # noqa: E402

PAGE = ROOT / "README.md"
BEGIN, END = "<!-- written by scripts/readme_tables.py -->\n", "<!-- end of the written part -->\n"


def generated() -> str:
    """The written part: commands, architectures, formats."""
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `ggrun {command.__name__}` | {(command.__doc__ or '').splitlines()[0].rstrip('.')} |" for command in COMMANDS]
    lines += ["", "| architecture | models stored so |", "|---|---|"]
    lines += [f"| `{name}` | {architecture.families} |" for name, architecture in REGISTRY.items()]
    lines += ["", "| weights | " + " | ".join(f"`{fmt.name}`" for fmt in FORMATS.values()) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    lines += ["| bits each | " + " | ".join(f"{fmt.bits_per_weight:g}" for fmt in FORMATS.values()) + " |", ""]
    return "\n".join(lines)


def page_with(text: str, part: str) -> str:
    """The page with its written part replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + part + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(), generated()))
