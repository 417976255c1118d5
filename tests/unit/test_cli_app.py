"""The command line's frame: errors become sentences and exit codes, and the help loads nothing heavy."""

import subprocess
import sys

import pytest

from ggrun.cli import app
from ggrun.cli.app import main
from ggrun.errors import GgrunError


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], *([c.__name__, "--help"] for c in app.COMMANDS)])
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    assert "Usage: ggrun" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys\nfrom ggrun.cli.app import main\ntry: main({arguments})\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "ggrun.cli.app" in loaded
    assert not loaded & {"numba", "numpy", "tokenizers", "jinja2", "prompt_toolkit", "psutil", "pydantic", "gguf", "quant"}
    if "chat" not in arguments:
        assert "rich" not in loaded


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import ggrun

    assert run("--version") == 0
    assert capsys.readouterr().out == f"ggrun {ggrun.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--frobnicate"], "No such option"),
        (["run", "-frob", "x"], "No such option: -frob"),  # never -f rob
        (["run", "-c4096"], "No such option: -c4096"),
        (["run", "-n", "many"], "'many' is not a valid"),
        (["run", "-c"], "requires an argument"),
        (["run", "a.gguf", "b.gguf"], "unexpected extra argument"),
        (["run", "-lm", "magic"], "'magic' is not one of"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["logits"], "Missing option"),
    ],
)
def test_wrong_command_lines_are_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GgrunError("the file is bad"), 1, "error: the file is bad\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (FileNotFoundError(2, "No such file or directory", "x.gguf"), 1, "error: x.gguf: No such file or directory\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (MemoryError(), 1, "error: out of memory"),
        (KeyError("odd\nthing"), 1, "error: something in ggrun went wrong (KeyError: 'odd\\nthing')"),
    ],
)
def test_errors_become_sentences(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.delenv("GGRUN_DEBUG", raising=False)
    monkeypatch.setattr("ggrun.cli.opening.find", broken)
    if isinstance(error, OSError):
        monkeypatch.setattr("os.dup2", lambda *descriptors: None)
    assert run("plan", "x.gguf") == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert "Traceback" not in err
    assert err.count("\n") <= 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("odd")

    monkeypatch.setenv("GGRUN_DEBUG", "1")
    monkeypatch.setattr("ggrun.cli.opening.find", broken)
    with pytest.raises(KeyError):
        main(["plan", "x.gguf"])


def test_ctrl_c_while_the_command_line_is_imported_shows_no_traceback() -> None:
    code = """
import builtins
real = builtins.__import__
def interrupted(name, *rest):
    if name == "ggrun.cli.app":
        raise KeyboardInterrupt
    return real(name, *rest)
builtins.__import__ = interrupted
from ggrun.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
