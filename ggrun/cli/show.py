"""`ggrun show`: what a GGUF file holds, also of models that cannot be run here, from its header alone.

`describe` gathers, in the form that `--json` prints; the rest renders it. Every value comes out of a file and may be of any type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggrun.cli.options import JsonFlag, ModelArgument, ModelFlag

if TYPE_CHECKING:
    from rich.table import Table

    from ggrun.gguf import GgufFile

SHORT_LIST = 256
"""Arrays of metadata up to this length are shown, longer ones described."""
_SHOWN_CHARACTERS = 100

# field: (metadata key after "ARCHITECTURE.", its name in the table)
WIDTHS: Mapping[str, tuple[str, str]] = {
    "context_length": ("context_length", "context"),
    "embedding_length": ("embedding_length", "embedding"),
    "block_count": ("block_count", "layers"),
    "head_count": ("attention.head_count", "heads"),
    "head_count_kv": ("attention.head_count_kv", "KV heads"),
    "key_length": ("attention.key_length", "head size"),
    "feed_forward_length": ("feed_forward_length", "feed forward"),
    "expert_count": ("expert_count", "experts"),
    "expert_used_count": ("expert_used_count", "experts used"),
    "expert_feed_forward_length": ("expert_feed_forward_length", "expert width"),
    "sliding_window": ("attention.sliding_window", "sliding window"),
    "rope_freq_base": ("rope.freq_base", "rope base"),
    "rope_scaling": ("rope.scaling.type", "rope scaling"),
    "rope_scaling_factor": ("rope.scaling.factor", "rope factor"),
}

# field: metadata key
NAMES: Mapping[str, str] = {
    "architecture": "general.architecture",
    "name": "general.name",
    "size_label": "general.size_label",
    "description": "general.description",
    "author": "general.author",
    "organization": "general.organization",
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "url": "general.url",
}


def show(model: ModelArgument = None, *, model_flag: ModelFlag = None, as_json: JsonFlag = False) -> None:
    """Show what a GGUF file holds: architecture, size, quantization, context, vocabulary, chat template, licence."""
    from ggrun.cli.opening import chosen
    from ggrun.cli.screen import Screen
    from ggrun.engine.loading import embedded_model
    from ggrun.gguf import open_gguf

    with open_gguf(chosen(model, model_flag, Screen()).path or embedded_model()) as file:
        description = describe(file)
    if as_json:
        import json

        print(json.dumps(description, indent=2, allow_nan=False))
    else:
        _print(description)


def describe(file: GgufFile) -> dict[str, Any]:
    """Everything known of a file without reading a weight, ready for JSON. Absent fields are None."""
    from ggrun.gguf.filetypes import FILE_TYPES

    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    tensors = list(file.tensors.values())
    n_parameters = sum(t.n_elements for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    file_type = metadata.get("general.file_type")
    obstacle = _obstacle(file)
    return {
        "path": file.path,
        "files": list(file.paths),
        "n_bytes": file.n_bytes,
        "version": file.version,
        "alignment": file.alignment,
        **{field: _scalar(metadata.get(key)) for field, key in NAMES.items()},
        "runs": obstacle is None,
        "obstacle": obstacle,
        "n_parameters": n_parameters,
        "bits_per_weight": round(8 * n_bytes / n_parameters, 4) if n_parameters else None,
        "file_type": FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        "formats": _formats(file),
        **{field: _value(metadata.get(f"{architecture}.{key}")) for field, (key, _) in WIDTHS.items()},
        "vocabulary": _vocabulary(file),
        "chat_template": _scalar(metadata.get("tokenizer.chat_template")),
        "chat_templates": {key.removeprefix(_TEMPLATE): _scalar(v) for key, v in metadata.items() if key.startswith(_TEMPLATE)},
        "n_tensors": len(tensors),
        "tensors": [{"name": t.name, "dims": list(t.dims), "format": t.format.name, "n_bytes": t.n_bytes} for t in tensors],
        "metadata": {key: _value(value) for key, value in metadata.items()},
    }


_TEMPLATE = "tokenizer.chat_template."


def _obstacle(file: GgufFile) -> str | None:
    """Why the model cannot be run here, None when it can."""
    from ggrun.errors import GgrunError
    from ggrun.models import build_program

    try:
        build_program(file.metadata, file.tensors)
    except GgrunError as error:
        return str(error)
    return None


def _formats(file: GgufFile) -> list[dict[str, Any]]:
    """The quantization mix: one entry a format, the one with the most bytes first."""
    total = sum(t.n_bytes for t in file.tensors.values())
    mix: dict[str, dict[str, Any]] = {}
    for t in file.tensors.values():
        row = {"format": t.format.name, "supported": t.readable, "n_tensors": 0, "n_parameters": 0, "n_bytes": 0, "kinds": []}
        entry = mix.setdefault(t.format.name, row)
        entry["n_tensors"] += 1
        entry["n_parameters"] += t.n_elements
        entry["n_bytes"] += t.n_bytes
        kind = _kind(t.name)
        if kind not in entry["kinds"]:
            entry["kinds"].append(kind)
    for entry in mix.values():
        entry["share"] = round(entry["n_bytes"] / total, 6)
        entry["bits_per_weight"] = round(8 * entry["n_bytes"] / entry["n_parameters"], 4)
    return sorted(mix.values(), key=lambda entry: -entry["n_bytes"])


def _kind(name: str) -> str:
    """A tensor's name without its layer: blk.7.attn_q.weight is one of many attn_q."""
    parts = [part for part in name.split(".") if not part.isdecimal() and part not in ("blk", "weight")]
    return ".".join(parts) or name


def _vocabulary(file: GgufFile) -> dict[str, Any]:
    """Size, kind and special tokens of the vocabulary."""
    from ggrun.gguf import MetadataArray

    metadata = file.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    special: dict[str, Any] = {}
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        if key == f"tokenizer.ggml.{name}_token_id" and isinstance(value, int):
            known = isinstance(tokens, MetadataArray) and 0 <= value < len(tokens)
            special[name] = {"id": value, "text": _scalar(tokens[value]) if known and isinstance(tokens, MetadataArray) else None}
    return {
        "size": len(tokens) if isinstance(tokens, MetadataArray) else None,
        "model": _scalar(metadata.get("tokenizer.ggml.model")),
        "pre": _scalar(metadata.get("tokenizer.ggml.pre")),
        "special": special,
    }


def _scalar(value: object) -> Any:
    """A value for JSON, which has neither infinities nor half characters; None when there is none or it is an array."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float) else None


def _value(value: object) -> Any:
    """A value for JSON; of a long array its type and length."""
    from ggrun.gguf import MetadataArray

    if not isinstance(value, MetadataArray):
        return _scalar(value)
    if len(value) > SHORT_LIST:
        return {"array": value.element_type, "length": len(value)}
    return [_value(element) for element in value.tolist()]


def _print(description: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 140))
    table = _grid()
    for name, text in _summary(description):
        table.add_row(Text(name), Text(_clean(text)))
    console.print(table)
    if description["formats"]:
        console.print(_mix(description["formats"]))
    table = _grid("metadata")
    for key, value in description["metadata"].items():
        table.add_row(Text(_clean(key)), Text(_clean(_shown(value))))
    console.print(table)


def _grid(title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, title=title, title_justify="left", title_style="bold", padding=(0, 1), pad_edge=False)
    table.add_column(style="bold" if title is None else "dim", no_wrap=title is None, overflow="fold")
    table.add_column(overflow="fold")
    return table


def _summary(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the first table; fields the file does not have are left out."""
    from ggrun.plan.ledger import human

    n_files = len(d["files"])
    rows: list[tuple[str, str | None]] = [
        ("file", d["path"] + (f" and {n_files - 1} more" if n_files > 1 else "")),
        ("name", " · ".join(str(d[field]) for field in ("name", "size_label", "description") if d[field]) or None),
        ("architecture", str(d["architecture"] or "not named")),
        ("runs here", "yes" if d["runs"] else f"no: {d['obstacle']}"),
        ("size", human(d["n_bytes"]) + f", GGUF version {d['version']}"),
        ("parameters", f"{_count(d['n_parameters'])} in {d['n_tensors']} tensors" if d["n_tensors"] else "none: the file holds no weights"),
        ("quantization", f"{d['file_type'] or 'a mix of its own'}, {d['bits_per_weight']:.2f} bits per weight" if d["n_tensors"] else None),
        *((label, None if d[field] is None else _shown(d[field])) for field, (_, label) in WIDTHS.items()),
        ("vocabulary", _vocabulary_row(d["vocabulary"])),
        ("special tokens", ", ".join(f"{name} {t['text'] or ''} ({t['id']})" for name, t in d["vocabulary"]["special"].items()) or None),
        ("chat template", _template_row(d)),
        ("licence", ", ".join(str(d[field]) for field in ("license", "license_name", "license_link") if d[field]) or "not stated"),
        ("from", ", ".join(str(d[field]) for field in ("author", "organization", "url") if d[field]) or None),
    ]
    return [(name, text) for name, text in rows if text is not None]


def _vocabulary_row(vocabulary: Mapping[str, Any]) -> str:
    if vocabulary["size"] is None:
        return "none"
    return f"{vocabulary['size']:,} tokens, {vocabulary['model'] or 'unnamed'} tokenizer" + (
        f", pre {vocabulary['pre']}" if vocabulary["pre"] else ""
    )


def _template_row(d: Mapping[str, Any]) -> str:
    own = "none" if d["chat_template"] is None else f"{len(str(d['chat_template'])):,} characters (--json prints it)"
    return own + (f"; also {', '.join(d['chat_templates'])}" if d["chat_templates"] else "")


def _mix(formats: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ggrun.plan.ledger import human

    table = Table(box=box.SIMPLE_HEAD, title="quantization", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("format")
    for heading in ("tensors", "parameters", "size", "share", "bits/weight"):
        table.add_column(heading, justify="right")
    table.add_column("of", overflow="fold")
    for row in formats:
        kinds = ", ".join(row["kinds"][:8]) + (f" and {len(row['kinds']) - 8} more" if len(row["kinds"]) > 8 else "")
        table.add_row(
            row["format"] + ("" if row["supported"] else " (not supported)"),
            str(row["n_tensors"]),
            _count(row["n_parameters"]),
            human(row["n_bytes"]),
            f"{row['share']:.1%}",
            f"{row['bits_per_weight']:.2f}",
            Text(_clean(kinds)),
        )
    return table


def _count(n: int) -> str:
    """A number of parameters as people say it: 1.24 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def _shown(value: object) -> str:
    """A metadata value on one line, long ones cut."""
    if isinstance(value, dict):
        return f"{value['length']:,} x {value['array']}"
    if isinstance(value, list):
        # the same number for every layer is one number
        text = (
            _shown(value[0])
            if value and all(v == value[0] for v in value) and len(value) > 1
            else "[" + ", ".join(map(_shown, value)) + "]"
        )
    elif isinstance(value, float):
        text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def _clean(text: str) -> str:
    """Text of a file without the control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
