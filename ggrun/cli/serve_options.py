"""The flags of `ggrun serve`: llama-server's names, short names and LLAMA_ARG_ variables."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from ggrun.cli.options import EngineOptions, Switch, flag

_listen = partial(flag, panel="Listening")
_slots = partial(flag, panel="Slots and cache")
_routes = partial(flag, panel="Routes")
_answers = partial(flag, panel="Answers")
_limits = partial(flag, panel="Limits")

ReasoningFormat = Literal["auto", "none", "deepseek", "deepseek-legacy"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]


@dataclass(frozen=True, slots=True)
class ServedEngineOptions(EngineOptions):
    """As every command's, for several conversations at once."""

    n_parallel: Annotated[
        int | None,
        _slots("-np", "--parallel", metavar="N", env="LLAMA_ARG_N_PARALLEL", shown=4, help="slots: answers at the same time; others wait"),
    ] = None
    kv_tokens: Annotated[
        int | None,
        _slots("--kv-tokens", metavar="N", shown="as -c", help="tokens all slots and the cache hold together; -c is what one may grow to"),
    ] = None
    step_ms: Annotated[
        float | None,
        _slots("--step-ms", metavar="MS", shown=120, help="how long a new prompt may hold up running answers at a time; 0: no limit"),
    ] = None


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where it listens, and to whom."""

    alias: Annotated[
        list[str] | None,
        _listen("-a", "--alias", metavar="NAME,...", env="LLAMA_ARG_ALIAS", shown="the file's", help="the model's names in the API"),
    ] = None
    host: Annotated[
        list[str] | None, _listen("--host", metavar="ADDRESS,...", env="LLAMA_ARG_HOST", shown="127.0.0.1", help="addresses to listen at")
    ] = None
    port: Annotated[int, _listen("--port", metavar="N", env="LLAMA_ARG_PORT", shown=8080, help="0 picks a free one and says which")] = 8080
    api_prefix: Annotated[
        str | None, _listen("--api-prefix", metavar="/PATH", env="LLAMA_ARG_API_PREFIX", help="what all paths begin with, the page's too")
    ] = None
    api_key: Annotated[
        list[str] | None, _listen("--api-key", metavar="KEY,...", env="LLAMA_API_KEY", help="requests need one of these; may be repeated")
    ] = None
    api_key_file: Annotated[
        str | None,
        _listen("--api-key-file", metavar="FILE", env="LLAMA_ARG_API_KEY_FILE", help="keys, one a line; # begins a comment"),
    ] = None
    ssl_key_file: Annotated[
        str | None, _listen("--ssl-key-file", metavar="FILE", env="LLAMA_ARG_SSL_KEY_FILE", help="private key (PEM): serve https")
    ] = None
    ssl_cert_file: Annotated[
        str | None, _listen("--ssl-cert-file", metavar="FILE", env="LLAMA_ARG_SSL_CERT_FILE", help="its certificate (PEM)")
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _listen(
            "--cors-origin",
            "--cors-origins",
            metavar="ORIGIN,...",
            env="LLAMA_ARG_CORS_ORIGINS",
            shown="none",
            help="sites whose pages may ask, such as http://localhost:3000; localhost: any of this machine; *: any at all",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        _listen("--allow-host", metavar="NAME,...", help="another name this machine is asked by, such as host.docker.internal"),
    ] = None
    strict_model: Annotated[
        bool, _listen("--strict-model", help="a model name that is not known is an error; without it the default model answers")
    ] = False


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """Which routes there are."""

    metrics: Annotated[bool, _routes("--metrics", env="LLAMA_ARG_ENDPOINT_METRICS", help="/metrics for Prometheus")] = False
    slots: Annotated[bool, _routes("--slots/--no-slots", env="LLAMA_ARG_ENDPOINT_SLOTS", shown="on", help="/slots")] = True
    props: Annotated[bool, _routes("--props", env="LLAMA_ARG_ENDPOINT_PROPS", help="POST /props changes defaults")] = False
    webui: Annotated[bool, _routes("--webui/--no-webui", "--ui/--no-ui", env="LLAMA_ARG_UI", shown="on", help="the page at /")] = True
    embeddings: Annotated[
        bool,
        _routes("--embeddings", "--embedding", env="LLAMA_ARG_EMBEDDINGS", help="accepted; embeddings always work, and so does the rest"),
    ] = False
    reranking: Annotated[bool, _routes("--reranking", "--rerank", env="LLAMA_ARG_RERANKING", help="not supported yet, and says so")] = False
    pooling: Annotated[
        Pooling | None,
        _routes("--pooling", env="LLAMA_ARG_POOLING", shown="the model's", help="how embeddings are made of tokens' vectors"),
    ] = None


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What is kept of prompts."""

    cache_prompt: Annotated[
        bool, _slots("--cache-prompt/--no-cache-prompt", env="LLAMA_ARG_CACHE_PROMPT", shown="on", help="reuse what prompts have in common")
    ] = True
    cache_reuse: Annotated[
        int,
        _slots(
            "--cache-reuse", metavar="N", env="LLAMA_ARG_CACHE_REUSE", shown=0, help="accepted; any shared beginning is reused, no middle"
        ),
    ] = 0
    cache_ram: Annotated[
        int,
        _slots(
            "-cram",
            "--cache-ram",
            metavar="MIB",
            env="LLAMA_ARG_CACHE_RAM",
            shown="64 times the pool, a quarter of what is free and 8192 at most",
            help="memory for what leaves the pool; 0: none",
        ),
    ] = -1
    disk_cache: Annotated[
        bool, _slots("--disk-cache/--no-disk-cache", shown="on", help="keep beginnings that several prompts had for the next start")
    ] = True
    disk_cache_mib: Annotated[int, _slots("--disk-cache-mib", metavar="MIB", shown=4096, help="disk that those beginnings may take")] = 4096
    slot_save_path: Annotated[
        str | None,
        _slots("--slot-save-path", metavar="FOLDER", env="LLAMA_ARG_SLOT_SAVE_PATH", help="where /slots/N?action=save keeps slots"),
    ] = None
    slot_prompt_similarity: Annotated[
        float,
        _slots("-sps", "--slot-prompt-similarity", metavar="X", shown=0.1, help="accepted; every slot finds every cached prompt"),
    ] = 0.1
    context_shift: Annotated[
        bool,
        _slots(
            "--context-shift/--no-context-shift",
            env="LLAMA_ARG_CONTEXT_SHIFT",
            shown="off",
            help="forget the oldest when the context is full",
        ),
    ] = False
    cont_batching: Annotated[
        bool,
        _slots("--cont-batching/--no-cont-batching", "-cb/-nocb", env="LLAMA_ARG_CONT_BATCHING", shown="on", help="cannot be switched off"),
    ] = True


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What requests have that do not say otherwise."""

    n_predict: Annotated[
        int,
        _answers(
            "-n", "--predict", "--n-predict", metavar="N", env="LLAMA_ARG_N_PREDICT", shown="-1: no limit", help="tokens of an answer"
        ),
    ] = -1
    keep: Annotated[int, _answers("--keep", metavar="N", shown=0, help="prompt tokens a context shift keeps; -1: all")] = 0
    reverse_prompt: Annotated[
        list[str] | None, _answers("-r", "--reverse-prompt", metavar="TEXT", help="stop at this text; may be repeated")
    ] = None
    escape: Annotated[bool, _answers("--escape/--no-escape", "-e", shown="on", help=r"read \n, \t, \\ ... in -r")] = True
    special: Annotated[bool, _answers("-sp", "--special", help="show special tokens, too")] = False
    jinja: Annotated[
        bool, _answers("--jinja/--no-jinja", env="LLAMA_ARG_JINJA", shown="on", help="cannot be switched off: every chat has its template")
    ] = True
    chat_template: Annotated[
        str | None,
        _answers("--chat-template", metavar="TEXT", env="LLAMA_ARG_CHAT_TEMPLATE", help="a Jinja template, or the name of a built-in one"),
    ] = None
    chat_template_file: Annotated[
        str | None, _answers("--chat-template-file", metavar="FILE", env="LLAMA_ARG_CHAT_TEMPLATE_FILE", help="a file that holds it")
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        _answers("--chat-template-kwargs", metavar="JSON", env="LLAMA_ARG_CHAT_TEMPLATE_KWARGS", help="more variables for the template"),
    ] = None
    reasoning_format: Annotated[
        ReasoningFormat,
        _answers(
            "--reasoning-format",
            env="LLAMA_ARG_THINK",
            shown="auto",
            help="auto, deepseek: into reasoning_content; deepseek-legacy: into both; none: left in the text",
        ),
    ] = "auto"
    reasoning: Annotated[
        Switch,
        _answers("-rea", "--reasoning", env="LLAMA_ARG_REASONING", shown="auto", help="thinking: on, off, or as the template has it"),
    ] = "auto"
    reasoning_effort: Annotated[
        str | None,
        _answers(
            "--reasoning-effort", metavar="LEVEL", env="LLAMA_ARG_REASONING_EFFORT", help="low, medium, high ...: told to the template"
        ),
    ] = None
    reasoning_budget: Annotated[
        int,
        _answers(
            "--reasoning-budget",
            metavar="N",
            env="LLAMA_ARG_THINK_BUDGET",
            shown="-1: no limit",
            help="tokens of thought, after which the answer begins; 0: no thinking",
        ),
    ] = -1
    reasoning_budget_message: Annotated[
        str | None,
        _answers(
            "--reasoning-budget-message",
            metavar="TEXT",
            env="LLAMA_ARG_THINK_BUDGET_MESSAGE",
            help="the last words of a thought that is ended by its budget",
        ),
    ] = None
    prefill_assistant: Annotated[
        bool,
        _answers(
            "--prefill-assistant/--no-prefill-assistant",
            env="LLAMA_ARG_PREFILL_ASSISTANT",
            shown="on",
            help="a last message of the assistant is continued",
        ),
    ] = True


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """How much, how many, how long."""

    timeout: Annotated[
        float, _limits("-to", "--timeout", metavar="S", env="LLAMA_ARG_TIMEOUT", shown=3600, help="seconds an answer may take; 0: no limit")
    ] = 3600.0
    read_timeout: Annotated[float, _limits("--read-timeout", metavar="S", shown=30, help="seconds a request may take to arrive")] = 30.0
    shutdown_timeout: Annotated[
        float, _limits("--shutdown-timeout", metavar="S", shown=5, help="seconds that answers have to end after SIGTERM or Ctrl-C")
    ] = 5.0
    sleep_idle_seconds: Annotated[
        float, _limits("--sleep-idle-seconds", metavar="S", shown="-1: never", help="free the memory after so long without a request")
    ] = -1.0
    sse_ping_interval: Annotated[
        float,
        _limits("--sse-ping-interval", metavar="S", env="LLAMA_ARG_SSE_PING_INTERVAL", shown=10, help="between comments in silent streams"),
    ] = 10.0
    max_body: Annotated[int, _limits("--max-body", metavar="MIB", shown=64, help="size of a request")] = 64
    max_connections: Annotated[int, _limits("--max-connections", metavar="N", shown=1024, help="more are answered 503")] = 1024
    max_queue: Annotated[int, _limits("--max-queue", metavar="N", shown=512, help="requests waiting for a slot; more are answered 429")] = (
        512
    )
    threads_http: Annotated[
        int,
        _limits("--threads-http", metavar="N", env="LLAMA_ARG_THREADS_HTTP", shown=-1, help="accepted; one thread serves every connection"),
    ] = -1
    verbose: Annotated[bool, _limits("-v", "--verbose", "--log-verbose", help="a line on stderr for each request")] = False
