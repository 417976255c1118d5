"""Models by name: models.toml, and who wins between the ways to name one."""

from pathlib import Path

import pytest

from ggrun.cli.named import Model, find, load
from ggrun.errors import GgrunError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and an empty settings folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "here"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_who_wins(here: Path) -> None:
    for name in "abc":
        (here / name).touch()
    environment = {"LLAMA_ARG_MODEL": "c"}
    assert find("a", None, environment).path == Path("a")
    assert find(None, "b", environment).path == Path("b")
    assert find(None, None, environment).path == Path("c")
    assert find(None, None, {}) == Model(None)
    assert find("a", "a", {}).path == Path("a")
    assert find("embedded", None, environment).label == "embedded"
    with pytest.raises(GgrunError, match="two models are named, a and -m b"):
        find("a", "b", {})


def test_a_named_model(here: Path) -> None:
    write(
        here / "models.toml",
        '[models.coder]\npath = "weights/m.gguf"\nn_ctx = 4096\nn_threads = 3\nsystem = "Be brief."\ntemperature = 0\n'
        'samplers = "top-k;temp"\n',
    )
    model = find("coder", None, {})
    assert model == Model(Path("weights/m.gguf"), 4096, 3, "Be brief.", {"temperature": 0.0, "samplers": ("top_k", "temperature")})


def test_the_nearer_file_wins(here: Path, tmp_path: Path) -> None:
    write(tmp_path / "config" / "ggrun" / "models.toml", '[models.a]\npath = "far.gguf"\n[models.b]\npath = "/b.gguf"')
    write(here / "models.toml", '[models.a]\npath = "near.gguf"')
    assert find("a", None, {}).path == Path("near.gguf")
    assert find("b", None, {}).path == Path("/b.gguf")
    with pytest.raises(GgrunError, match="named models: a, b"):
        find("c", None, {})


def test_a_file_needs_no_table(here: Path) -> None:
    write(here / "models.toml", "this is [ not toml")
    (here / "m.gguf").touch()
    assert find("m.gguf", None, {}).path == Path("m.gguf")
    with pytest.raises(GgrunError, match="models.toml is not valid TOML"):
        find("other", None, {})


def test_a_folder_is_no_model(here: Path) -> None:
    with pytest.raises(GgrunError, match="is a folder"):
        find(str(here), None, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.a]\nn_ctx = 1", r"\[models.a\] needs path"),
        ("[models]\na = 1", r"\[models.a\] needs path"),
        ('[models.a]\npath = "x"\nn_ctx = "big"', "n_ctx must be a number"),
        ('[models.a]\npath = "x"\nn_ctx = true', "n_ctx must be a number"),
        ('[models.a]\npath = "x"\nsystem = 3', "system must be text"),
        ('[models.a]\npath = "x"\ntemprature = 1', "temprature is no sampling value"),
        ('[models.a]\npath = "x"\ntop_k = "all"', "top_k cannot be 'all': a whole number is expected"),
        ('[models.a]\npath = "x"\ntop_p = 2', "--top-p must be between 0 and 1"),
        ('[servers.a]\npath = "x"', "only tables called"),
        ("models = 3", "only tables called"),
    ],
)
def test_mistakes_are_named(text: str, said: str, here: Path) -> None:
    write(here / "models.toml", text)
    with pytest.raises(GgrunError, match=said):
        load(here / "models.toml")


def test_the_example_that_comes_along() -> None:
    example = Path(__file__).resolve().parents[2] / "models.toml"
    assert load(example) == {}  # all of it is comments ...
    uncommented = "\n".join(
        line.removeprefix("# ")
        for line in example.read_text().splitlines()
        if line.startswith(("# [", "# ")) and ("=" in line or "[models" in line)
    )
    write(Path("models.toml"), uncommented)
    assert load(Path("models.toml"))  # ... which is right once the marks are gone
