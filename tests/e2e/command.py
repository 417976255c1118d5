"""Runs the real command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what could change how ggrun behaves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG_", "GGRUN_DEBUG", "COLUMNS", "NO_COLOR"))}
    return kept | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "160"} | more


def ggrun(*arguments: str | Path, piped: str = "", folder: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m ggrun ARGUMENTS` with `piped` on its standard input."""
    command = [sys.executable, "-m", "ggrun", *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        command, input=piped, capture_output=True, encoding="utf-8", env=environment(PYTHONPATH=path), cwd=folder, timeout=timeout
    )
