"""Every flag that more than one command takes: one table a topic, a dataclass whose fields declare the flags.

A command names a table as the type of one of its parameters; `command` spreads its fields over the command line and hands them
back as one value. Names, short names, environment variables and defaults are llama.cpp's. `None` means "not given": the value
then comes from models.toml, and after that from the engine's own default, which `shown` only displays (a test compares the two).
"""

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

import typer

Executor = Literal["auto", "cpu", "cuda", "reference"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock"]
Switch = Literal["on", "off", "auto"]


def flag(*names: str, panel: str, help: str, shown: object = None, env: str | None = None, metavar: str | None = None, **more: Any) -> Any:
    """One option; `shown` is the default to display, `env` the LLAMA_ARG_ variable that sets it when the flag is absent."""
    default = False if shown is None else str(shown)
    more |= {"envvar": env, "show_envvar": False, "metavar": metavar, "show_default": default}
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


_model = partial(flag, panel="Model")
_compute = partial(flag, panel="Compute")
_place = partial(flag, panel="Placement")
_sampling = partial(flag, panel="Sampling")
_prompt = partial(flag, panel="Prompt")

ModelArgument = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="a GGUF file, or a name from models.toml", show_default=False)]
ModelFlag = Annotated[str | None, _model("-m", "--model", metavar="MODEL", help="the model, named by a flag instead")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object instead")]


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Where parts of the model run, and in how much memory. What is not given is solved for; `ggrun.plan.pins` reads the words."""

    override_tensor: Annotated[
        list[str] | None,
        _place(
            "-ot",
            "--override-tensor",
            metavar="PATTERN=DEVICE",
            env="LLAMA_ARG_OVERRIDE_TENSOR",
            help="the units of tensors whose names match run there: CPU, CUDA0 ...; may be repeated",
        ),
    ] = None
    n_cpu_ffn: Annotated[
        int | None,
        _place("-ncffn", "--n-cpu-ffn", metavar="N", env="LLAMA_ARG_N_CPU_FFN", shown=0, help="first layers whose FFN stays on the CPU"),
    ] = None
    kv_offload: Annotated[
        bool | None,
        _place(
            "--kv-offload/--no-kv-offload",
            "-kvo/-nkvo",
            env="LLAMA_ARG_KV_OFFLOAD",
            shown="on",
            help="-nkvo: attention and its KV cache stay on the CPU",
        ),
    ] = None
    op_offload: Annotated[
        bool | None,
        _place("--op-offload/--no-op-offload", shown="on", help="stream the CPU's weights to a GPU for long prompts where that is faster"),
    ] = None
    device: Annotated[
        str | None, _place("-dev", "--device", metavar="CUDA0,...", env="LLAMA_ARG_DEVICE", shown="all", help="the GPUs to use, or none")
    ] = None
    tensor_split: Annotated[
        str | None,
        _place(
            "-ts",
            "--tensor-split",
            metavar="A,B,...",
            env="LLAMA_ARG_TENSOR_SPLIT",
            shown="by free memory",
            help="shares of the layers by GPU, such as 3,1",
        ),
    ] = None
    split_mode: Annotated[
        str | None,
        _place("-sm", "--split-mode", metavar="layer|none", env="LLAMA_ARG_SPLIT_MODE", shown="layer", help="none: one GPU only"),
    ] = None
    main_gpu: Annotated[
        int | None, _place("-mg", "--main-gpu", metavar="N", env="LLAMA_ARG_MAIN_GPU", shown=0, help="the one -sm none uses")
    ] = None
    vram_budget: Annotated[
        str | None,
        _place("--vram-budget", metavar="SIZE,...", shown="what is free", help="the most to take of each GPU, such as 6GiB"),
    ] = None
    ram_budget: Annotated[
        str | None, _place("--ram-budget", metavar="SIZE", shown="what is available", help="the most to take of the machine's memory")
    ] = None
    fit: Annotated[
        str | None,
        _place("-fit", "--fit", metavar="on|off", env="LLAMA_ARG_FIT", shown="on", help="off: nothing is adjusted to what is free"),
    ] = None
    fit_target: Annotated[
        str | None,
        _place("-fitt", "--fit-target", metavar="MIB,...", env="LLAMA_ARG_FIT_TARGET", shown=1024, help="left free on each GPU"),
    ] = None
    fit_ctx: Annotated[
        int | None,
        _place("-fitc", "--fit-ctx", metavar="N", env="LLAMA_ARG_FIT_CTX", shown=4096, help="the least context chosen to make room"),
    ] = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which model, how much context, and what computes it."""

    model_flag: ModelFlag = None
    n_ctx: Annotated[
        int | None, _model("-c", "--ctx-size", metavar="N", env="LLAMA_ARG_CTX_SIZE", shown="0: what fits", help="tokens of context")
    ] = None
    load_mode: Annotated[
        LoadMode | None,
        _model("-lm", "--load-mode", env="LLAMA_ARG_LOAD_MODE", shown="auto", help="auto: from the file at once, then onto huge pages"),
    ] = None
    mlock: Annotated[bool, _model("--mlock", env="LLAMA_ARG_MLOCK", help="the same as -lm mlock")] = False
    no_mmap: Annotated[bool, _model("--no-mmap", env="LLAMA_ARG_NO_MMAP", help="the same as -lm none")] = False
    n_threads: Annotated[
        int | None, _compute("-t", "--threads", metavar="N", env="LLAMA_ARG_THREADS", shown="-1: every core", help="threads")
    ] = None
    n_threads_batch: Annotated[
        int | None,
        _compute("-tb", "--threads-batch", metavar="N", env="LLAMA_ARG_THREADS_BATCH", shown="as -t", help="threads for prompts"),
    ] = None
    n_batch: Annotated[
        int | None, _compute("-b", "--batch-size", metavar="N", env="LLAMA_ARG_BATCH", shown=2048, help="prompt tokens a step")
    ] = None
    n_ubatch: Annotated[
        int | None, _compute("-ub", "--ubatch-size", metavar="N", env="LLAMA_ARG_UBATCH", shown=512, help="tokens computed at once")
    ] = None
    n_parallel: Annotated[
        int | None, _compute("-np", "--parallel", metavar="N", env="LLAMA_ARG_N_PARALLEL", shown=1, help="sequences at the same time")
    ] = None
    n_gpu_layers: Annotated[
        str | None,
        _compute(
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            metavar="N",
            env="LLAMA_ARG_N_GPU_LAYERS",
            shown="auto",
            help="layers on GPUs, the head counted as one: a number, all, or auto",
        ),
    ] = None
    flash_attn: Annotated[
        Switch, _compute("-fa", "--flash-attn", env="LLAMA_ARG_FLASH_ATTN", shown="auto", help="accepted; attention is always fused")
    ] = "auto"
    cache_type_k: Annotated[
        str | None,
        _compute(
            "-ctk", "--cache-type-k", metavar="TYPE", env="LLAMA_ARG_CACHE_TYPE_K", shown="f16", help="type of cached keys: f16, q8_0, q4_0"
        ),
    ] = None
    cache_type_v: Annotated[
        str | None,
        _compute(
            "-ctv",
            "--cache-type-v",
            metavar="TYPE",
            env="LLAMA_ARG_CACHE_TYPE_V",
            shown="f16",
            help="type of cached values: f16, q8_0, q4_0",
        ),
    ] = None
    cpu_moe: Annotated[bool | None, _place("-cmoe", "--cpu-moe", env="LLAMA_ARG_CPU_MOE", help="all experts stay on the CPU")] = None
    n_cpu_moe: Annotated[
        int | None,
        _place(
            "-ncmoe", "--n-cpu-moe", metavar="N", env="LLAMA_ARG_N_CPU_MOE", shown="what fits", help="first layers whose experts stay there"
        ),
    ] = None
    placement: PlacementOptions = field(default_factory=PlacementOptions)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen. Field names are those of `ggrun.Sampling`."""

    seed: Annotated[int | None, _sampling("-s", "--seed", metavar="N", shown="-1: random", help="same seed, same answer")] = None
    temperature: Annotated[float | None, _sampling("--temp", "--temperature", metavar="X", shown=0.8, help="0 is greedy")] = None
    top_k: Annotated[
        int | None, _sampling("--top-k", metavar="N", env="LLAMA_ARG_TOP_K", shown=40, help="only the N likeliest; 0: all")
    ] = None
    top_p: Annotated[float | None, _sampling("--top-p", metavar="X", shown=0.95, help="nucleus; 1.0: off")] = None
    min_p: Annotated[float | None, _sampling("--min-p", metavar="X", shown=0.05, help="least share of the best's probability")] = None
    typical_p: Annotated[float | None, _sampling("--typical", "--typical-p", metavar="X", shown=1.0, help="1.0: off")] = None
    top_n_sigma: Annotated[float | None, _sampling("--top-n-sigma", "--top-nsigma", metavar="X", shown=-1.0, help="-1: off")] = None
    xtc_probability: Annotated[float | None, _sampling("--xtc-probability", metavar="X", shown=0.0, help="0: off")] = None
    xtc_threshold: Annotated[float | None, _sampling("--xtc-threshold", metavar="X", shown=0.1, help="above 0.5: off")] = None
    dynatemp_range: Annotated[
        float | None, _sampling("--dynatemp-range", metavar="X", shown=0.0, help="temperature varies by this much")
    ] = None
    dynatemp_exponent: Annotated[
        float | None, _sampling("--dynatemp-exp", metavar="X", shown=1.0, help="how entropy maps to temperature")
    ] = None
    repeat_penalty: Annotated[float | None, _sampling("--repeat-penalty", metavar="X", shown=1.0, help="1.0: off")] = None
    repeat_last_n: Annotated[int | None, _sampling("--repeat-last-n", metavar="N", shown=64, help="tokens penalties look at; -1: all")] = (
        None
    )
    presence_penalty: Annotated[float | None, _sampling("--presence-penalty", metavar="X", shown=0.0, help="0: off")] = None
    frequency_penalty: Annotated[float | None, _sampling("--frequency-penalty", metavar="X", shown=0.0, help="0: off")] = None
    dry_multiplier: Annotated[float | None, _sampling("--dry-multiplier", metavar="X", shown=0.0, help="0: off")] = None
    dry_base: Annotated[float | None, _sampling("--dry-base", metavar="X", shown=1.75, help="growth with length")] = None
    dry_allowed_length: Annotated[
        int | None, _sampling("--dry-allowed-length", metavar="N", shown=2, help="repeats this long are free")
    ] = None
    dry_penalty_last_n: Annotated[
        int | None, _sampling("--dry-penalty-last-n", metavar="N", shown=-1, help="tokens DRY looks at; -1: all")
    ] = None
    dry_sequence_breakers: Annotated[
        list[str] | None, _sampling("--dry-sequence-breaker", metavar="TEXT", help="replaces the breakers; may be repeated; none: none")
    ] = None
    mirostat: Annotated[int | None, _sampling("--mirostat", metavar="0|1|2", shown=0, help="0: off")] = None
    mirostat_tau: Annotated[float | None, _sampling("--mirostat-ent", metavar="X", shown=5.0, help="target entropy")] = None
    mirostat_eta: Annotated[float | None, _sampling("--mirostat-lr", metavar="X", shown=0.1, help="learning rate")] = None
    samplers: Annotated[
        str | None,
        _sampling(
            "--samplers",
            "--sampling-seq",
            "--sampler-seq",
            metavar="A;B;C",
            shown="penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
            help="their order",
        ),
    ] = None
    logit_bias: Annotated[
        list[str] | None, _sampling("-l", "--logit-bias", metavar="ID+X", help="ID+1.5 or ID-1, ID-inf bans; may be repeated")
    ] = None
    ignore_eos: Annotated[bool, _sampling("--ignore-eos", help="never end by itself")] = False


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What the model is given and where it stops."""

    prompt: Annotated[str | None, _prompt("-p", "--prompt", metavar="TEXT", help="the prompt; - reads it from the pipe")] = None
    file: Annotated[str | None, _prompt("-f", "--file", metavar="FILE", help="a file that holds the prompt; - is the pipe")] = None
    system: Annotated[str | None, _prompt("-sys", "--system-prompt", metavar="TEXT", help="the system prompt")] = None
    system_file: Annotated[
        str | None, _prompt("-sysf", "--system-prompt-file", metavar="FILE", help="a file that holds the system prompt")
    ] = None
    chat_template: Annotated[
        str | None,
        _prompt("--chat-template", metavar="TEXT", env="LLAMA_ARG_CHAT_TEMPLATE", help="a Jinja template, or the name of a built-in one"),
    ] = None
    chat_template_file: Annotated[
        str | None,
        _prompt("--chat-template-file", metavar="FILE", env="LLAMA_ARG_CHAT_TEMPLATE_FILE", help="a file that holds it"),
    ] = None
    escape: Annotated[bool, _prompt("--escape/--no-escape", "-e", shown="on", help=r"read \n, \t, \\ ... in -p, -sys and -r")] = True
    n_predict: Annotated[
        int | None,
        _prompt("-n", "--predict", "--n-predict", metavar="N", env="LLAMA_ARG_N_PREDICT", shown="-1: no limit", help="tokens to write"),
    ] = None
    reverse_prompt: Annotated[
        list[str] | None, _prompt("-r", "--reverse-prompt", metavar="TEXT", help="stop at this text; may be repeated")
    ] = None
    keep: Annotated[int, _prompt("--keep", metavar="N", shown=0, help="prompt tokens a shift keeps; -1: all")] = 0


def rows_of(table: Any) -> list[Field[Any]]:
    """The fields of a table that declare flags, those of tables within it included."""
    return [row for own in fields(table) for row in (rows_of(own.type) if is_dataclass(own.type) else [own])]


def _folded(table: Any, values: dict[str, Any]) -> Any:
    """The table with its values, which are taken out of the dictionary."""
    return table(**{own.name: _folded(own.type, values) if is_dataclass(own.type) else values.pop(own.name) for own in fields(table)})


class ReaderGone(Exception):
    """Whoever read our output went away."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as Typer takes it: a parameter whose type is a dataclass is spread into its fields, and folded again in the call."""
    parameters: list[inspect.Parameter] = []
    tables: dict[str, Any] = {}
    for name, own in inspect.signature(function, eval_str=True).parameters.items():
        rows = [(name, own.default, own.annotation)]
        if is_dataclass(own.annotation):
            tables[name] = own.annotation
            rows = [(row.name, row.default, row.type) for row in rows_of(own.annotation)]
        parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, d, a in rows]

    def call(**values: Any) -> Any:
        for name, table in tables.items():
            values[name] = _folded(table, values)
        try:
            return function(**values)
        except BrokenPipeError:  # Typer would end the program itself
            raise ReaderGone from None

    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, function.__module__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
