"""The house keeps its own rules: who may import what, what is packaged, and pages that are made from code are current."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPO

# package: libraries it may import, besides Python's own and what the import rules in pyproject.toml let it
LIBRARIES = {
    "quant": {"numpy", "numba", "llvmlite"},
    "ggrun/text": {"tokenizers", "jinja2", "numpy"},
    "ggrun/gguf": {"numpy", "gguf"},
    "ggrun/program": {"numpy"},
    "ggrun/models": {"numpy"},
    "ggrun/plan": {"psutil"},
}
# never on the way to `ggrun --help`, nor in a description of a device
NO_NUMBA = ["ggrun/plan", "ggrun/program", "ggrun/models", "ggrun/runtime/cpu/device.py", "ggrun/cli"]


def imports(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").partition(".")[0]


def sources(place: str) -> list[Path]:
    path = REPO / place
    found = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("place", LIBRARIES)
def test_libraries_a_package_may_use(place: str) -> None:
    allowed = LIBRARIES[place] | sys.stdlib_module_names | {"ggrun", "quant"} - ({"ggrun"} if place == "quant" else set())
    for path in sources(place):
        assert set(imports(path)) <= allowed, path


@pytest.mark.parametrize("place", NO_NUMBA)
def test_places_without_numba(place: str) -> None:
    for path in sources(place):
        assert "numba" not in set(imports(path)), path


def test_every_folder_of_code_is_a_package() -> None:
    for package in ("ggrun", "quant"):
        for folder in {path.parent for path in (REPO / package).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder


def test_libraries_that_are_imported_are_declared() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["plot"] + project["optional-dependencies"]["cuda"]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in declared}
    used = {name for package in ("ggrun", "quant") for path in (REPO / package).rglob("*.py") for name in imports(path)}
    assert used - set(sys.stdlib_module_names) - {"ggrun", "quant"} <= names


def test_no_tracked_file_names_a_developers_folder() -> None:
    if not shutil.which("git") or not (REPO / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True)
    home = re.compile(rb"/(?:home|Users)/[a-z]|/root/")
    for name in filter(None, listed.stdout.split("\0")):
        path = REPO / name
        if path.suffix in (".py", ".md", ".toml", ".sh", "") and path.is_file() and path != Path(__file__):
            assert not home.search(path.read_bytes()), name


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, REPO / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_written_tables_are_current() -> None:
    script = load("readme_tables")
    assert len(script.PAGES) == 4
    for path, part in script.PAGES.items():
        page = path.read_text()
        assert page == script.page_with(page, part()), "run python scripts/readme_tables.py"
        assert page.count(script.BEGIN) == page.count(script.END) == 1


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("*.md")))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (REPO / page).read_text()):
        assert (REPO / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_readmes_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)[1]
    assert len(example.strip().splitlines()) == 5
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
