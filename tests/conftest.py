"""What every test may use: the shared oracle data, the embedded model, and the `slow` marker.

The shared data (oracle models, tokenizer cases, chat templates) lies beside the checkout, or where GGRUN_SHARED points. A stranger's
checkout has none: tests that need it are skipped there, and fail when CI=true, so that a missing folder is never taken for success.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("GGRUN_SHARED", REPO.parent / "shared"))
EMBEDDED = REPO / "ggrun" / "data" / "pydoc.gguf"

settings.register_profile("ggrun", deadline=None, print_blob=True)
settings.load_profile("ggrun")


def shared_path(*parts: str) -> Path:
    """A path of the shared data; skips the calling test (or module) when it is missing, and fails when CI=true."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        message = f"needs the shared test data {'/'.join(parts) or '(folder)'}: set GGRUN_SHARED to where it lies"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message, allow_module_level=True)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data."""
    return shared_path()


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The embedded default model's file."""
    return EMBEDDED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run what is marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests, unless --all or -m was given or the test was named by its node id."""
    if config.getoption("--all") or config.option.markexpr or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The run fails when a check that scripts/test made before it (ruff, mypy, import rules) did."""
    if os.environ.get("GGRUN_FAILED_CHECKS") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if failed := os.environ.get("GGRUN_FAILED_CHECKS"):
        terminalreporter.write_line(f"FAILED checks before the tests: {failed} (their output is at the top)", red=True)
