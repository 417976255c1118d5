"""Named models: models.toml of the current folder, then of the user's settings folder.

    [models.coder]
    path = "~/models/qwen2.5-coder-7b-q4_k_m.gguf"
    aliases = ["gpt-4o-mini"]
    n_ctx = 16384
    n_gpu_layers = 20
    type_k = "q8_0"
    system = "You are a careful programmer."
    temperature = 0.2

`path` is relative to the file it stands in. What else may be set: the flags of context, compute and placement under their fields' names
(OPTIONS, PLACEMENT), and every field of `ggrun.Sampling`. A flag wins. Knows nothing of engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ggrun.errors import GgrunError

EMBEDDED = "embedded"

# keys of a table, and what they are; those of OPTIONS are fields of the engine's Options, those of PLACEMENT words of `read_pins`
OWN: Final[Mapping[str, type]] = {"aliases": list, "system": str, "chat_template_file": str}
OPTIONS: Final[Mapping[str, type]] = {
    "n_ctx": int,
    "n_threads": int,
    "n_threads_batch": int,
    "n_batch": int,
    "n_ubatch": int,
    "n_parallel": int,
    "kv_tokens": int,
    "type_k": str,
    "type_v": str,
    "load_mode": str,
}
PLACEMENT: Final[Mapping[str, type]] = {
    "n_gpu_layers": str,
    "override_tensor": list,
    "cpu_moe": bool,
    "n_cpu_moe": int,
    "n_cpu_ffn": int,
    "kv_offload": bool,
    "op_offload": bool,
    "device": str,
    "tensor_split": str,
    "split_mode": str,
    "main_gpu": int,
    "vram_budget": str,
    "ram_budget": str,
    "fit": str,
    "fit_target": str,
    "fit_ctx": int,
}
_WORDS: Final = {int: "a number", str: "text", bool: "true or false", list: "a list of texts"}
_ALSO_NUMBERS: Final = ("n_gpu_layers", "fit_target", "tensor_split")  # texts that people write as a number


@dataclass(frozen=True, slots=True)
class Model:
    """What a person meant by a model: its file (None: the embedded one) and what models.toml says about it."""

    path: Path | None
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    placement: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    template_file: Path | None = None

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
    known = named()
    for model in (known[n] for n in known if name == n or name in known[n].aliases):
        return model
    names = f"; named models: {', '.join(sorted(known))}" if known else ""
    raise GgrunError(f"there is no file {name}, and models.toml names no such model{names}")


def named() -> dict[str, Model]:
    """Every model of every models.toml, by name; the nearer file's wins."""
    known: dict[str, Model] = {}
    for file in files():
        known |= {name: model for name, model in load(file).items() if name not in known}
    return known


def files() -> list[Path]:
    """The models.toml files that exist, the nearest first."""
    from platformdirs import user_config_path

    return [file for file in (Path("models.toml"), user_config_path("ggrun") / "models.toml") if file.is_file()]


def load(file: Path) -> dict[str, Model]:
    """The models a models.toml names. Raises GgrunError naming the file, the line, the model and the key for anything not understood."""
    import tomllib

    try:
        text = file.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GgrunError(f"{file} is not valid TOML: {error}") from None
    tables = content.get("models", {})
    if not isinstance(tables, dict) or set(content) - {"models"}:
        key = next((key for key in content if key != "models"), "models")
        raise GgrunError(f"{_at(file, text, key)}: only tables called [models.NAME] are known")
    models = {name: _Table(file, text, name).model(table) for name, table in tables.items()}
    taken: dict[str, str] = {}
    for name, model in models.items():
        for alias in (name, *model.aliases):
            if taken.setdefault(alias, name) != name:
                where = f"{_at(file, text, name, 'aliases')}: [models.{name}]"
                raise GgrunError(f"{where} is called {alias!r}, and so is [models.{taken[alias]}]")
    return models


class _Table:
    """One [models.NAME] of a file, and where its mistakes are."""

    def __init__(self, file: Path, text: str, name: str) -> None:
        self._file, self._text, self._name = file, text, name

    def model(self, table: object) -> Model:
        if not isinstance(table, dict) or not isinstance(table.get("path"), str):
            raise GgrunError(f'{self._where("path")} needs path = "some.gguf"')
        values = dict(table)
        path = self._path(values.pop("path"))
        own, options, placement = (self._taken(values, keys) for keys in (OWN, OPTIONS, PLACEMENT))
        self._checked_placement(placement)
        file = own.get("chat_template_file")
        return Model(
            path,
            own.get("system"),
            self._sampling(values),
            options,
            placement,
            tuple(own.get("aliases", ())),
            self._path(file) if file else None,
        )

    def _path(self, text: str) -> Path:
        return self._file.parent / Path(text).expanduser()

    def _taken(self, values: dict[str, Any], keys: Mapping[str, type]) -> dict[str, Any]:
        """The values of these keys, taken out and checked."""
        found: dict[str, Any] = {}
        for key in keys.keys() & values.keys():
            value, kind = values.pop(key), keys[key]
            if key in _ALSO_NUMBERS and type(value) in (int, float):
                value = str(value)
            if type(value) is not kind or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
                raise GgrunError(f"{self._where(key)} {key} must be {_WORDS[kind]}")
            found[key] = value
        return found

    def _checked_placement(self, placement: Mapping[str, Any]) -> None:
        from ggrun.plan.pins import read_pins

        for key, value in placement.items():
            try:
                read_pins(**{key: value})
            except GgrunError as error:
                raise GgrunError(f"{self._where(key)} {key}: {error}") from None
        read_pins(**placement)

    def _sampling(self, values: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            from ggrun.cli.choosing import checked

            result |= checked({key: value}, self._where(key))
        return result

    def _where(self, key: str) -> str:
        return f"{_at(self._file, self._text, self._name, key)}: [models.{self._name}]"


def _at(file: Path, text: str, name: str, key: str = "") -> str:
    """FILE:LINE of a table's key, as far as it can be seen; of the table where the key cannot."""
    quoted = rf"(?:{re.escape(name)}|\"{re.escape(name)}\"|'{re.escape(name)}')"
    header = re.compile(rf"\s*(?:\[\s*(?:models\s*\.\s*)?{quoted}\s*\]|{quoted}\s*=|models\s*\.\s*{quoted}\b)")
    line_of_table = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            line_of_table = number
        elif line_of_table and line.lstrip().startswith("["):
            break
        elif line_of_table and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return f"{file}:{number}"
    return f"{file}:{line_of_table}" if line_of_table else str(file)
