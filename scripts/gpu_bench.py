#!/usr/bin/env python3
"""What a GPU can do and what ggrun gets from it, part by part; scripts/gpu_check.sh runs them all and keeps what they print.

    ceilings            reading, tensor cores, FMA and the link, by kernels that do nothing else; kept in FILE for `steps`
    models FOLDER       random weights in the shapes that are measured
    steps MODEL         every kernel class of a token and of a prompt: time, and share of the ceilings
    full MODEL          a context filled to its last token within a budget, and the card's memory beside the ledger's
    speeds MODEL        pp and tg by `ggrun bench`, medians with their spread
    predictions MODEL   five plans: what `ggrun plan` says, and what they give
    first MODEL         loading and the first token

Each prints Markdown. `--small`: sizes for the stand-in driver, where no figure means anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from scripts.gpu import ceilings, full, speeds, steps  # noqa: E402

MODELS = (("llama-3.1-8b", "q4_k_m"), ("llama-3.1-8b", "q8_0"), ("qwen3-0.6b", "q8_0"))
TESTS = ("-p", "512,2048", "-n", "128", "-npl", "1,8,32", "-ub", "2048", "-r", "5")
DEEP = ("-p", "0", "-n", "128", "-d", "0,16384", "-r", "3")


def _ceilings(arguments: argparse.Namespace) -> None:
    found = ceilings.measure(small=arguments.small)
    arguments.kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    print("| the card reaches | |\n|---|---:|")
    print(f"| reading memory | {found.read / 1e9:.0f} GB/s |")
    for name, rate in (("int8, tensor cores", found.int8), ("f16, tensor cores", found.half), ("float, FMA", found.single)):
        print(f"| {name} | {rate / 1e12:.1f} TOP/s |" if rate else f"| {name} | not measured |")
    print(f"| to it, from it | {found.to_device / 1e9:.1f}, {found.from_device / 1e9:.1f} GB/s |")


def _models(arguments: argparse.Namespace) -> None:
    import make_model

    arguments.model.mkdir(parents=True, exist_ok=True)
    for shape, mix in MODELS:
        path = arguments.model / f"{shape}-{mix}.gguf"
        if not path.exists():
            begin = perf_counter()
            make_model.make(shape, mix, str(path), None, 0, None)
            print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB in {perf_counter() - begin:.0f} s")


def _steps(arguments: argparse.Namespace) -> None:
    reached = ceilings.Ceilings(**json.loads(arguments.kept.read_text(encoding="utf-8")))
    batches, n_ctx = ([(1, 0), (20, 0)], 256) if arguments.small else ([(1, 0), (1, 16384), (8, 0), (512, 0)], 17408)
    seconds, n_bytes, profiles = steps.profile(arguments.model, batches, n_ctx)
    print(f"loaded {n_bytes / 1e9:.2f} GB in {seconds:.2f} s, {n_bytes / seconds / reached.to_device:.0%} of the link's speed\n")
    print(steps.table(profiles, reached))


def _full(arguments: argparse.Namespace) -> None:
    small = arguments.small
    lines = full.fill(arguments.model, 256 if small else 32768, "3" if small else "20", None if small else "6GiB")
    print("\n".join(f"- {line}" for line in lines))


def _speeds(arguments: argparse.Namespace) -> None:
    if arguments.small:
        print(speeds.speeds(arguments.model, ("-p", "16", "-n", "2", "-r", "1")))
        return
    print(speeds.speeds(arguments.model, TESTS))
    print(speeds.speeds(arguments.model, DEEP))


def _predictions(arguments: argparse.Namespace) -> None:
    small = arguments.small
    print(speeds.predictions(arguments.model, speeds.SMALL_PLANS if small else speeds.PLANS, 1 if small else 3, small))


def _first(arguments: argparse.Namespace) -> None:
    print(speeds.first_token(arguments.model))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ceilings": _ceilings,
    "models": _models,
    "steps": _steps,
    "full": _full,
    "speeds": _speeds,
    "predictions": _predictions,
    "first": _first,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    embedded = ROOT / "ggrun" / "data" / "pydoc.gguf"
    parser.add_argument("model", nargs="?", type=Path, default=embedded, help="a GGUF file, or the folder of `models`")
    parser.add_argument("--kept", type=Path, default=Path("gpu-ceilings.json"), help="where `ceilings` leaves its figures for `steps`")
    parser.add_argument("--small", action="store_true", help="sizes for what is no GPU")
    arguments = parser.parse_args()
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
