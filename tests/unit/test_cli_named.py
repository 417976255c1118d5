"""Models by name: models.toml, and who wins between the ways to name one."""

from pathlib import Path

import pytest

from ggrun.cli.named import Model, find, load
from ggrun.cli.opening import settings
from ggrun.cli.options import EngineOptions
from ggrun.cli.screen import Screen
from ggrun.errors import GgrunError
from ggrun.plan.pins import read_pins


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
        'samplers = "top-k;temp"\naliases = ["code", "gpt"]\nn_gpu_layers = 20\ntype_k = "q8_0"\nkv_offload = false\n'
        'override_tensor = ["ffn=CPU"]\nchat_template_file = "t.jinja"\n',
    )
    for name in ("coder", "gpt"):
        assert find(name, None, {}) == Model(
            Path("weights/m.gguf"),
            "Be brief.",
            {"temperature": 0.0, "samplers": ("top_k", "temperature")},
            {"n_ctx": 4096, "n_threads": 3, "type_k": "q8_0"},
            {"n_gpu_layers": "20", "kv_offload": False, "override_tensor": ["ffn=CPU"]},
            ("code", "gpt"),
            Path("t.jinja"),
        )


def test_flags_win(here: Path) -> None:
    values = 'n_ctx = 4096\nn_gpu_layers = 20\ntype_k = "q8_0"\nn_cpu_moe = 3\nn_parallel = 2'
    write(here / "models.toml", f'[models.a]\npath = "a.gguf"\n{values}')
    model = find("a", None, {})
    silent = settings(model, EngineOptions(), Screen(), described=True)
    assert (silent["n_ctx"], silent["type_k"], silent["n_parallel"], silent["placement"]) == (
        4096,
        "q8_0",
        2,
        read_pins(n_gpu_layers="20", n_cpu_moe=3),
    )
    flags = EngineOptions(n_ctx=512, n_gpu_layers="0", cache_type_k="f16", cpu_moe=True, n_parallel=1)
    loud = settings(model, flags, Screen(), described=True)
    assert (loud["n_ctx"], loud["type_k"], loud["n_parallel"]) == (512, "f16", 1)
    assert loud["placement"] == read_pins(n_gpu_layers="0", cpu_moe=True)


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
        ('# first\n\n[models.a]\npath = "x"\n n_ctx = "big"', r"models.toml:5: \[models.a\] n_ctx must be a number"),
        ('[models."a.b"]\npath = "x"\ntop_p = 2', r"models.toml:3: \[models.a.b\] --top-p must be between 0 and 1"),
        ('models.a.path = "x"\nmodels.a.n_ctx = true', r"models.toml:2: \[models.a\] n_ctx must be a number"),
        ('[models]\na = {path = "x", n_ctx = true}', r"models.toml:2: \[models.a\] n_ctx must be a number"),
        ('[models.b]\npath = "y"\n[models.a]\nn_ctx = 1', r"models.toml:3: \[models.a\] needs path"),
        ('[models.a]\npath = "x"\nn_gpu_layers = "many"', r"models.toml:3: \[models.a\] n_gpu_layers: .*many"),
        ('[models.a]\npath = "x"\nvram_budget = "6"', r"models.toml:3: \[models.a\] vram_budget: .*is not a size"),
        ('[models.a]\npath = "x"\naliases = "b"', r"models.toml:3: \[models.a\] aliases must be a list of texts"),
        ('[models.a]\npath = "x"\n[models.b]\npath = "y"\naliases = ["a"]', r"models.toml:5: \[models.b\] is called .a., and so is"),
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
