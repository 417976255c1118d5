"""Named models: models.toml of the current folder, then of the user's settings folder.

    [models.coder]
    path = "~/models/qwen2.5-coder-7b-q4_k_m.gguf"
    n_ctx = 16384
    system = "You are a careful programmer."
    temperature = 0.2

`path` is relative to the file it stands in. Besides path, n_ctx, n_threads and system, every field of `ggrun.Sampling` may be set;
a flag wins. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggrun.errors import GgrunError

EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Model:
    """What a person meant by a model: its file (None: the embedded one) and what models.toml says about it."""

    path: Path | None
    n_ctx: int | None = None
    n_threads: int | None = None
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model's name as the screen and JSON show it."""
        return str(self.path) if self.path else EMBEDDED


def find(argument: str | None, flag: str | None, environment: Mapping[str, str]) -> Model:
    """The model meant by a positional argument, -m, LLAMA_ARG_MODEL or nothing (the embedded one), in this order.

    Raises GgrunError when argument and flag differ, or when nothing of that name exists.
    """
    if argument and flag and argument != flag:
        raise GgrunError(f"two models are named, {argument} and -m {flag}; name one")
    name = argument or flag or environment.get("LLAMA_ARG_MODEL") or EMBEDDED
    if name == EMBEDDED:
        return Model(None)
    path = Path(name).expanduser()
    if path.is_dir():
        raise GgrunError(f"{name} is a folder; name a GGUF file in it")
    if path.exists():
        return Model(path)
    known: dict[str, Model] = {}
    for file in files():
        known = load(file) | known
    if name in known:
        return known[name]
    names = f"; named models: {', '.join(sorted(known))}" if known else ""
    raise GgrunError(f"there is no file {name}, and models.toml names no such model{names}")


def files() -> list[Path]:
    """The models.toml files that exist, the nearest first."""
    from platformdirs import user_config_path

    return [file for file in (Path("models.toml"), user_config_path("ggrun") / "models.toml") if file.is_file()]


def load(file: Path) -> dict[str, Model]:
    """The models a models.toml names. Raises GgrunError naming the file, the model and the key for anything not understood."""
    import tomllib

    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GgrunError(f"{file} is not valid TOML: {error}") from None
    tables = content.get("models", {})
    if not isinstance(tables, dict) or set(content) - {"models"}:
        raise GgrunError(f"{file}: only tables called [models.NAME] are known")
    return {name: _model(file, name, table) for name, table in tables.items()}


def _model(file: Path, name: str, table: object) -> Model:
    if not isinstance(table, dict) or not isinstance(table.get("path"), str):
        raise GgrunError(f'{file}: [models.{name}] needs path = "some.gguf"')
    values = dict(table)
    path = file.parent / Path(values.pop("path")).expanduser()
    own: dict[str, Any] = {}
    for key, kind in (("n_ctx", int), ("n_threads", int), ("system", str)):
        if key in values:
            own[key] = values.pop(key)
            if type(own[key]) is not kind:
                raise GgrunError(f"{file}: [models.{name}] {key} must be {'a number' if kind is int else 'text'}")
    if values:
        from ggrun.cli.choosing import checked

        values = checked(values, f"{file}: [models.{name}]")
    return Model(path, **own, sampling=values)
