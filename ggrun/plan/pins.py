"""What the user pinned about where units run and how much memory they take, read from the flags' words. Knows no model, no device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ggrun.errors import GgrunError
from ggrun.plan.ledger import human

ALL = 1 << 20  # layers: more than any model has
MIB = 1 << 20
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?b)?|b)", re.IGNORECASE)
_OVERRIDE = re.compile(r"\s*(.+?)=([A-Za-z_]+\d*)\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Pins:
    """One field a flag. What is None or empty was not pinned and is solved for."""

    n_gpu_layers: int | None = None  # -ngl; the output head is one of them; ALL: as many as there are
    overrides: tuple[tuple[str, str], ...] = ()  # -ot: (pattern, device)
    n_cpu_moe: int | None = None  # -ncmoe, -cmoe: of the first layers, the experts
    n_cpu_ffn: int = 0  # -ncffn
    kv_offload: bool = True  # -nkvo: False
    op_offload: bool = True  # the CPU's weights may be streamed to GPUs for long prompts
    split: tuple[float, ...] = ()  # -ts: shares of the layers by device
    devices: tuple[str, ...] | None = None  # -dev; (): none
    main_gpu: int = 0  # -mg: the one that -sm none uses
    split_mode: Literal["layer", "none"] = "layer"
    vram_budget: tuple[int, ...] = ()  # bytes: one for all GPUs, or one each
    ram_budget: int = 0  # bytes; 0: what is available
    fit: bool = True
    fit_target: tuple[int, ...] = (1024 * MIB,)  # bytes left free on each GPU when something is solved for
    fit_ctx: int = 4096  # the least context that is chosen to make room

    @property
    def asks_for_gpu(self) -> bool:
        """Whether the user insists on a GPU; auto and 0 do not."""
        return bool(self.n_gpu_layers) or bool(self.devices)


def read_pins(
    n_gpu_layers: str | None = None,
    override_tensor: Sequence[str] = (),
    cpu_moe: bool = False,
    n_cpu_moe: int | None = None,
    n_cpu_ffn: int = 0,
    kv_offload: bool = True,
    op_offload: bool = True,
    tensor_split: str | None = None,
    device: str | None = None,
    main_gpu: int = 0,
    split_mode: str = "layer",
    vram_budget: str | None = None,
    ram_budget: str | None = None,
    fit: str = "on",
    fit_target: str | None = None,
    fit_ctx: int = 4096,
) -> Pins:
    """The pins that the flags' words mean. Raises GgrunError, one sentence, for the first that means nothing."""
    if cpu_moe and n_cpu_moe is not None:
        raise GgrunError(f"-cmoe and -ncmoe {n_cpu_moe} say different things; give one of them")
    for name, value in (("-ncmoe", n_cpu_moe), ("-ncffn", n_cpu_ffn), ("-mg", main_gpu), ("-fitc", fit_ctx)):
        if value is not None and not 0 <= value <= 1 << 30:
            raise GgrunError(f"{name} {value} is out of range; it takes 0 or more")
    if split_mode not in ("layer", "none"):
        why = "rows of a matrix are not split over GPUs here" if split_mode == "row" else "there is no such way"
        raise GgrunError(f"-sm {split_mode}: {why}; -sm takes layer (layers over all GPUs) or none (one GPU, -mg says which)")
    if fit not in ("on", "off"):
        raise GgrunError(f"-fit {fit} is neither on nor off")
    return Pins(
        n_gpu_layers=_layers(n_gpu_layers),
        overrides=tuple(pair for text in override_tensor for pair in _overrides(text)),
        n_cpu_moe=ALL if cpu_moe else n_cpu_moe,
        n_cpu_ffn=n_cpu_ffn,
        kv_offload=kv_offload,
        op_offload=op_offload,
        split=_split(tensor_split),
        devices=_devices(device),
        main_gpu=main_gpu,
        split_mode="none" if split_mode == "none" else "layer",
        vram_budget=tuple(size("--vram-budget", text) for text in _list(vram_budget)),
        ram_budget=size("--ram-budget", ram_budget) if ram_budget else 0,
        fit=fit == "on",
        fit_target=_margins(fit_target),
        fit_ctx=fit_ctx,
    )


def size(flag: str, text: str) -> int:
    """Bytes of "6GiB", "6G", "512M"; every prefix is a power of 1024. A bare number could be anything and is refused."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise GgrunError(f"{flag} {text!r} is not a size; write it with its unit, such as 6GiB or 512MiB")
    n_bytes = round(float(found[1]) * _UNITS[(found[2] or "b").lower()])
    if not 0 < n_bytes <= 1 << 50:
        raise GgrunError(f"{flag} {text} is no size that a machine has")
    return n_bytes


def flags_of(pins: Pins) -> list[str]:
    """The command line's words for the pins; those at their defaults are left out."""
    default = Pins()
    words: list[str] = []
    for field in fields(Pins):
        value = getattr(pins, field.name)
        if value != getattr(default, field.name):
            words += _WORDS[field.name](value)
    return words


def _mib(values: tuple[int, ...]) -> str:
    return ",".join(str(value // MIB) for value in values)


def _size_word(n_bytes: int) -> str:
    return human(n_bytes).replace(" ", "") if n_bytes % (MIB * 10) == 0 else f"{n_bytes}B"


_WORDS: dict[str, Callable[[Any], list[str]]] = {
    "n_gpu_layers": lambda v: ["-ngl", "auto" if v is None else "all" if v >= ALL else str(v)],
    "overrides": lambda v: [word for pattern, device in v for word in ("-ot", f"{pattern}={device}")],
    "n_cpu_moe": lambda v: ["-cmoe"] if v is not None and v >= ALL else ["-ncmoe", str(v)],
    "n_cpu_ffn": lambda v: ["-ncffn", str(v)],
    "kv_offload": lambda v: ["-nkvo"],
    "op_offload": lambda v: ["--no-op-offload"],
    "split": lambda v: ["-ts", ",".join(f"{share:g}" for share in v)],
    "devices": lambda v: ["-dev", ",".join(v) or "none"],
    "main_gpu": lambda v: ["-mg", str(v)],
    "split_mode": lambda v: ["-sm", v],
    "vram_budget": lambda v: ["--vram-budget", ",".join(map(_size_word, v))],
    "ram_budget": lambda v: ["--ram-budget", _size_word(v)],
    "fit": lambda v: ["-fit", "off"],
    "fit_target": lambda v: ["-fitt", _mib(v)],
    "fit_ctx": lambda v: ["-fitc", str(v)],
}


def _list(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _layers(text: str | None) -> int | None:
    word = (text or "auto").strip().lower()
    if word == "auto":
        return None
    if word == "all":
        return ALL
    try:
        n = int(word)
    except ValueError:
        raise GgrunError(f"-ngl {text} is neither a number nor auto nor all") from None
    return ALL if n < 0 else min(n, ALL)


def _overrides(text: str) -> list[tuple[str, str]]:
    """("PATTERN", "CPU") for each PATTERN=DEVICE of a comma list; commas within a pattern stay in it."""
    pairs, at = [], 0
    while at < len(text):
        found = _OVERRIDE.match(text, at)
        if not found:
            raise GgrunError(f"-ot {text!r} is not PATTERN=DEVICE, such as -ot 'ffn_.*_exps=CPU'")
        pattern, device = found[1], found[2].upper()
        if device != "CPU" and not re.fullmatch(r"CUDA\d+", device):
            raise GgrunError(f"-ot {text!r}: there is no device called {found[2]}; it is CPU, CUDA0, CUDA1 ...")
        try:
            re.compile(pattern)
        except re.error as error:
            raise GgrunError(f"-ot {pattern!r} is not a regular expression: {error}") from None
        pairs.append((pattern, device))
        at = found.end()
    return pairs


def _split(text: str | None) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in re.split(r"[,/]", text)) if text else ()
    except ValueError:
        raise GgrunError(f"-ts {text!r} is not a list of shares, such as 3,1") from None
    if shares and not (all(0 <= share < 1e9 for share in shares) and sum(shares) > 0):
        raise GgrunError(f"-ts {text}: shares are 0 or more, and one of them is more")
    return shares


def _devices(text: str | None) -> tuple[str, ...] | None:
    if not text:
        return None
    names = tuple(part.upper() for part in _list(text))
    if names == ("NONE",) or names == ("CPU",):
        return ()
    for name in names:
        if not re.fullmatch(r"CUDA\d+", name):
            raise GgrunError(f"-dev {text}: there is no device called {name}; it is CUDA0, CUDA1 ..., or none")
    if len(set(names)) < len(names):
        raise GgrunError(f"-dev {text} names a device twice")
    return names


def _margins(text: str | None) -> tuple[int, ...]:
    try:
        margins = tuple(int(part) * MIB for part in _list(text))
    except ValueError:
        raise GgrunError(f"-fitt {text!r} is not a number of MiB, or a list of them") from None
    if any(not 0 <= margin < 1 << 50 for margin in margins):
        raise GgrunError(f"-fitt {text} is out of range; it takes 0 or more MiB")
    return margins or Pins().fit_target
