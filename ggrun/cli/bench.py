"""`ggrun bench`: tokens a second, with llama-bench's flags, test names, columns and formats."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import PlacementOptions, flag

if TYPE_CHECKING:
    from ggrun.bench.formats import Writer
    from ggrun.bench.result import Result

OutputFormat = Literal["md", "csv", "json", "jsonl", "sql"]
Values = list[str] | None

_test = partial(flag, panel="Tests")
_setting = partial(flag, panel="Settings")
_output = partial(flag, panel="Output")
_LIST = "N,..."
SWEPT = "0-8192+1024"  # -d of --sweep


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """llama-bench's flags; `Values` are lists as `ggrun.bench.matrix.numbers` reads them."""

    model_flags: Annotated[Values, flag("-m", "--model", panel="Tests", metavar="MODEL,...", help="models, named by a flag instead")] = None
    n_prompt: Annotated[Values, _test("-p", "--n-prompt", metavar=_LIST, shown=512, help="prompt lengths; 0: none")] = None
    n_gen: Annotated[Values, _test("-n", "--n-gen", metavar=_LIST, shown=128, help="numbers of generated tokens; 0: none")] = None
    n_prompt_gen: Annotated[Values, _test("-pg", metavar="PP,TG", help="a prompt and then an answer, timed together; may be repeated")] = (
        None
    )
    n_depth: Annotated[
        Values, _test("-d", "--n-depth", metavar=_LIST, shown=f"0; --sweep: {SWEPT}", help="tokens in the context before, not timed")
    ] = None
    n_parallel: Annotated[
        Values, _test("-npl", metavar=_LIST, shown=1, help="sequences that generate at once, each with its own context; t/s is of all")
    ] = None
    repetitions: Annotated[int, _test("-r", "--repetitions", metavar="N", shown=5, help="timed runs of each test")] = 5
    delay: Annotated[float, _test("--delay", metavar="SECONDS", shown=0, help="rest between tests")] = 0
    no_warmup: Annotated[bool, _test("--no-warmup", help="do not run each test once before it is timed")] = False
    n_batch: Annotated[Values, _setting("-b", "--batch-size", metavar=_LIST, shown=2048, help="prompt tokens a step")] = None
    n_ubatch: Annotated[Values, _setting("-ub", "--ubatch-size", metavar=_LIST, shown=512, help="tokens computed at once")] = None
    n_threads: Annotated[Values, _setting("-t", "--threads", metavar=_LIST, shown="every core", help="threads, for both kinds of test")] = (
        None
    )
    cache_type_k: Annotated[Values, _setting("-ctk", "--cache-type-k", metavar="TYPE,...", shown="f16", help="types of cached keys")] = None
    cache_type_v: Annotated[Values, _setting("-ctv", "--cache-type-v", metavar="TYPE,...", shown="f16", help="types of cached values")] = (
        None
    )
    flash_attn: Annotated[
        Values, _setting("-fa", "--flash-attn", metavar="auto|on", shown="auto", help="accepted; attention is always fused")
    ] = None
    n_gpu_layers: Annotated[
        Values, _setting("-ngl", "--n-gpu-layers", "--gpu-layers", metavar=_LIST, shown="auto", help="layers on GPUs; all, or auto")
    ] = None
    cpu_moe: Annotated[bool, _setting("-cmoe", "--cpu-moe", help="all experts stay on the CPU")] = False
    n_cpu_moe: Annotated[
        Values, _setting("-ncmoe", "--n-cpu-moe", metavar=_LIST, shown="what fits", help="layers whose experts stay on the CPU")
    ] = None
    load_mode: Annotated[Values, _setting("-lm", "--load-mode", metavar="MODE,...", shown="auto", help="how weights come into memory")] = (
        None
    )
    output: Annotated[OutputFormat, _output("-o", "--output", shown="md", help="what is written to stdout")] = "md"
    output_err: Annotated[OutputFormat | None, _output("-oe", "--output-err", shown="nothing", help="what is written to stderr")] = None
    sweep: Annotated[bool, _output("--sweep", help="a row a depth, with the prompt's and the answer's speed side by side")] = False
    plot: Annotated[Path | None, _output("--plot", metavar="FILE.png", help="draw speed against depth (needs matplotlib)")] = None
    placement: PlacementOptions = field(default_factory=PlacementOptions)


def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="GGUF files, or names from models.toml", show_default=False)
    ] = None,
    *,
    options: BenchOptions,
    list_devices: ListDevicesFlag = False,
) -> None:
    """Measure how many tokens a second a model computes, with llama-bench's flags, columns and formats.

    Lists are written 1,2,4 or 1-4, 0-4096+1024, 64-1024*2, or by giving a flag again; every combination is measured.
    """
    from ggrun.bench.formats import FORMATS
    from ggrun.bench.plot import draw
    from ggrun.cli.jobs import jobs_of, measured
    from ggrun.cli.screen import Screen
    from ggrun.runtime.executor import Cancelled

    screen = Screen()
    jobs = jobs_of(models or [], options, screen)
    entries = [entry for job in jobs for entry in job.entries]
    form = "sweep" if options.sweep and options.output == "md" else options.output
    outputs: list[tuple[Writer, TextIO]] = [(FORMATS[form](entries), sys.stdout)]
    if options.output_err:
        outputs.append((FORMATS[options.output_err](entries), sys.stderr))
    results: list[Result] = []
    try:
        _write(outputs, lambda writer: writer.begin())
        for result in measured(jobs, options, screen):
            results.append(result)
            _write(outputs, partial(_row, result))
    except (KeyboardInterrupt, Cancelled):
        screen.note(f"stopped: {len(results)} of {len(entries)} tests are done")
        raise typer.Exit(130) from None
    finally:
        _write(outputs, lambda writer: writer.end())
        if options.plot and results:
            draw(results, options.plot)


def _row(result: "Result", writer: "Writer") -> str:
    return writer.row(result)


def _write(outputs: "Sequence[tuple[Writer, TextIO]]", text: "Callable[[Writer], str]") -> None:
    for writer, stream in outputs:
        stream.write(text(writer))
        stream.flush()
