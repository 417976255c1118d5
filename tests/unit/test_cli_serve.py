"""The flags of `ggrun serve`: llama-server's, all of them, each implemented, accepted without effect or refused by name."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from ggrun.cli import llama_server
from ggrun.cli.app import app, main
from ggrun.cli.llama_server import FLAGS, answers_to
from ggrun.cli.options import rows_of
from ggrun.cli.serve_options import AnswerOptions, CacheOptions, LimitOptions, ListenOptions, RouteOptions, ServedEngineOptions
from ggrun.cli.serve_settings import server_settings, words
from ggrun.cli.serving import SLOTS, STEP_MS
from ggrun.errors import GgrunError
from ggrun.server.settings import Settings

# llama-server's own, as its README lists them (sampling and placement are compared elsewhere)
SERVER = """
    -h --help -cl --cache-list --completion-bash -t --threads -tb --threads-batch -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll
    -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch -c --ctx-size -n --predict --n-predict -b
    --batch-size -ub --ubatch-size --keep --swa-full -fa --flash-attn --perf --no-perf -e --escape --no-escape --rope-scaling --rope-scale
    --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -kvo
    --kv-offload -nkvo --no-kv-offload --repack -nr --no-repack --no-host -ctk --cache-type-k -ctv --cache-type-v -dt --defrag-thold --rpc
    -lm --load-mode -lzm --lazy-mode --numa -dev --device --list-devices -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe
    --moe-cache-mib -ncffn --n-cpu-ffn -ngl --gpu-layers --n-gpu-layers -sm --split-mode -ts --tensor-split -mg --main-gpu -fit --fit -fitt
    --fit-target -fitc --fit-ctx --check-tensors --override-kv --op-offload --no-op-offload --lora --lora-scaled --control-vector
    --control-vector-scaled --control-vector-layer-range -m --model -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft
    --hf-token --log-disable --log-file --log-jsonl --no-log-jsonl --log-colors -v --verbose --log-verbose --offline -lv --verbosity
    --log-verbosity --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps --spec-draft-type-k -ctkd --cache-type-k-draft
    --spec-draft-type-v -ctvd --cache-type-v-draft --samplers -s --seed --sampler-seq --sampling-seq --ignore-eos --temp --temperature
    --top-k --top-p --min-p --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold --typical --typical-p --repeat-last-n
    --repeat-penalty --presence-penalty --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n
    --dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l
    --logit-bias --grammar --grammar-file -j --json-schema -jf --json-schema-file -bs --backend-sampling -lcs --lookup-cache-static -lcd
    --lookup-cache-dynamic --kv-unified-per-slot -ctxcp --ctx-checkpoints --swa-checkpoints -cms --checkpoint-min-step -cram --cache-ram
    -kvu --kv-unified -no-kvu --no-kv-unified --cache-idle-slots --no-cache-idle-slots --context-shift --no-context-shift -r
    --reverse-prompt -sp --special --warmup --no-warmup --spm-infill --pooling -np --parallel -cb --cont-batching -nocb --no-cont-batching
    -mm --mmproj -mmu --mmproj-url --mmproj-auto --no-mmproj --no-mmproj-auto --mmproj-offload --no-mmproj-offload -mmdev --mmproj-device
    --image-min-tokens --image-max-tokens --mtmd-batch-max-tokens --video-fps --video-timestamp-interval --video-ffmpeg-dir -a --alias
    --tags --embd-normalize --host --port --reuse-port --path --cors-origins --cors-methods --cors-headers --cors-credentials
    --no-cors-credentials --api-prefix --ui-config --webui-config --ui-config-file --webui-config-file --ui-mcp-proxy --webui-mcp-proxy
    --no-ui-mcp-proxy --no-webui-mcp-proxy --tools --tools-runtime --mcp-servers-config --mcp-servers-json -ag --agent -no-ag --no-agent
    --ui --webui --no-ui --no-webui --embedding --embeddings --rerank --reranking --api-key --api-key-file --ssl-key-file --ssl-cert-file
    --chat-template-kwargs -to --timeout --sse-ping-interval --threads-http --cache-prompt --no-cache-prompt --cache-reuse --metrics
    --props --slots --no-slots --slot-save-path --media-path --models-dir --models-preset --models-max --models-autoload
    --no-models-autoload --jinja --no-jinja --reasoning-format -rea --reasoning --reasoning-effort --reasoning-budget
    --reasoning-budget-message --reasoning-preserve --no-reasoning-preserve --chat-template --chat-template-file --skip-chat-parsing
    --no-skip-chat-parsing --prefill-assistant --no-prefill-assistant -sps --slot-prompt-similarity --lora-init-without-apply
    --sleep-idle-seconds --log-prompts-dir -hfd -hfrd --hf-repo-draft --spec-draft-hf -td --threads-draft -tbd --threads-batch-draft -Cd
    -Crd --cpu-strict-draft --prio-draft --poll-draft -Cbd -otd -cmoed -ncmoed --spec-draft-n-max --spec-draft-n-min --spec-synth-len
    --spec-synth-rates --draft-p-split --draft-p-min --spec-draft-backend-sampling --no-spec-draft-backend-sampling --spec-draft-sampling
    -devd -ngld -md --model-draft --spec-type --spec-ngram-mod-n-min --spec-ngram-simple-size-n --spec-ngram-map-k-size-n
    --spec-ngram-map-k4v-size-n --draft --draft-n --draft-max --draft-min --draft-n-min --spec-default --embd-gemma-default
    --fim-qwen-1.5b-default --fim-qwen-30b-default --gpt-oss-20b-default --vision-gemma-12b-default --mlock --no-mmap
""".split()
VARIABLES = """
    LLAMA_ARG_ALIAS LLAMA_ARG_HOST LLAMA_ARG_PORT LLAMA_API_KEY LLAMA_ARG_API_KEY_FILE LLAMA_ARG_N_PARALLEL LLAMA_ARG_CTX_SIZE
    LLAMA_ARG_N_PREDICT LLAMA_ARG_BATCH LLAMA_ARG_UBATCH LLAMA_ARG_THREADS LLAMA_ARG_N_GPU_LAYERS LLAMA_ARG_CACHE_TYPE_K
    LLAMA_ARG_CACHE_TYPE_V LLAMA_ARG_FLASH_ATTN LLAMA_ARG_ENDPOINT_METRICS LLAMA_ARG_ENDPOINT_SLOTS LLAMA_ARG_ENDPOINT_PROPS
    LLAMA_ARG_SLOT_SAVE_PATH LLAMA_ARG_POOLING LLAMA_ARG_EMBEDDINGS LLAMA_ARG_RERANKING LLAMA_ARG_JINJA LLAMA_ARG_CHAT_TEMPLATE
    LLAMA_ARG_CHAT_TEMPLATE_FILE LLAMA_ARG_CHAT_TEMPLATE_KWARGS LLAMA_ARG_THINK LLAMA_ARG_THINK_BUDGET LLAMA_ARG_TIMEOUT
    LLAMA_ARG_CACHE_PROMPT LLAMA_ARG_CACHE_REUSE LLAMA_ARG_CACHE_RAM LLAMA_ARG_CONTEXT_SHIFT LLAMA_ARG_CONT_BATCHING LLAMA_ARG_UI
    LLAMA_ARG_CORS_ORIGINS LLAMA_ARG_THREADS_HTTP LLAMA_ARG_SSE_PING_INTERVAL LLAMA_ARG_SSL_KEY_FILE LLAMA_ARG_SSL_CERT_FILE
    LLAMA_ARG_REASONING LLAMA_ARG_REASONING_EFFORT LLAMA_ARG_PREFILL_ASSISTANT
""".split()
TABLES = (ServedEngineOptions, ListenOptions, RouteOptions, CacheOptions, AnswerOptions, LimitOptions)


def own_flags() -> set[str]:
    parameters = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)} | {"-h", "--help"}


def settings(**given: Any) -> Settings:
    """The server's settings, as flags by their fields say."""
    tables = []
    for table in (ListenOptions, RouteOptions, CacheOptions, AnswerOptions, LimitOptions):
        tables.append(table(**{field.name: given.pop(field.name) for field in fields(table) if field.name in given}))
    assert not given
    return server_settings(*tables)


def test_every_flag_of_llama_server_is_known() -> None:
    assert set(SERVER) - own_flags() - set(FLAGS) == set()
    assert own_flags() & set(FLAGS) == set()


def test_every_variable_is_known() -> None:
    variables = {row.type.__metadata__[0].envvar for table in TABLES for row in rows_of(table)}
    assert set(VARIABLES) - variables == set()


def test_the_shown_defaults_are_the_defaults() -> None:
    assert (SLOTS, STEP_MS) == (4, 120.0)
    shown = {row.name: row.type.__metadata__[0].show_default for row in rows_of(ServedEngineOptions)}
    assert (shown["n_parallel"], shown["step_ms"]) == ("4", "120")
    assert settings() == Settings()
    for table in TABLES:
        for row in rows_of(table):
            shown, default = row.type.__metadata__[0].show_default, row.default
            if shown and isinstance(default, int | float) and not isinstance(default, bool) and row.name != "cache_ram":
                assert float(shown.partition(":")[0]) == default, row.name
            elif isinstance(default, bool) and shown:
                assert shown == ("on" if default else "off"), row.name


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_every_answer_is_a_sentence(name: str) -> None:
    row = FLAGS[name]
    values = ["x"] * row.n_values
    if row.refused:
        with pytest.raises(GgrunError, match=f"^{name}: .{{10,}}"):
            llama_server.answer(name, values)
    else:
        assert llama_server.answer(name, values).startswith(f"{name} has no effect: ")


@pytest.mark.parametrize(("name", "value"), list(llama_server.SAME))
def test_refused_flags_that_ask_for_what_is_so(name: str, value: str) -> None:
    assert "no effect" in llama_server.answer(name, [value])


def test_variables_are_answered() -> None:
    given = {"LLAMA_ARG_NUMA": "distribute", "HOME": "/x", "LLAMA_ARG_PORT": "1", "LLAMA_ARG_NO_PORT": "1", "LLAMA_ARG_PROT": "1"}
    assert answers_to(given, {"LLAMA_ARG_PORT"}) == [
        "LLAMA_ARG_PROT is not known here and has no effect",
        "LLAMA_ARG_NUMA has no effect: memory is spread by the system; numactl says how",
    ]
    with pytest.raises(GgrunError, match="LLAMA_ARG_HF_REPO: ggrun downloads nothing"):
        answers_to({"LLAMA_ARG_HF_REPO": "a/b"}, set())
    assert len(answers_to({"LLAMA_ARG_AGENT": "0"}, set())) == 1


def test_values_of_flags_without_effect_are_not_taken_for_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--numa", "isolate", "--control-vector-layer-range", "1", "2"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("--numa has no effect")
    assert said[1].startswith("error: --control-vector-layer-range: adapters")


def test_what_arrives(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n#no\ntwo\n")
    own = settings(
        host=["0.0.0.0, ::1"],
        api_key=["two,three"],
        api_key_file=str(tmp_path / "keys"),
        cors_origin=["http://A.example/", "localhost"],
        allow_host=["Host.docker.internal"],
        slot_save_path=str(tmp_path),
        reasoning="off",
        reasoning_effort="low",
        chat_template_kwargs='{"reasoning_effort": "high", "a": 1}',
        timeout=5.0,
        max_body=2,
        sse_ping_interval=-1.0,
        context_shift=True,
        metrics=True,
        slots=False,
    )
    assert own.hosts == ("0.0.0.0", "::1")
    assert own.wide
    assert own.api_keys == ("two", "three", "one")
    assert own.cors_origins == ("http://a.example", "localhost")
    assert own.allowed_hosts == ("host.docker.internal",)
    assert own.slot_save_path == tmp_path.resolve()
    assert own.template == {"enable_thinking": False, "reasoning_effort": "high", "a": 1}
    assert (own.reasoning_budget, own.timeout, own.max_body, own.context_shift, own.metrics, own.slots) == (
        0,
        5,
        2 << 20,
        True,
        True,
        False,
    )
    assert own.keep_alive > 1e6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api_key": [""]}, "--api-key is empty"),
        ({"api_key": [" , "]}, "--api-key is empty"),
        ({"port": -1}, "--port -1 is out of range"),
        ({"api_prefix": "chat"}, "--api-prefix 'chat' must begin with a slash"),
        ({"api_prefix": "/a/../b"}, "must begin with a slash"),
        ({"api_prefix": "/a?b"}, "must begin with a slash"),
        ({"timeout": -1.0}, "--timeout -1 is out of range"),
        ({"timeout": float("nan")}, "--timeout nan is out of range"),
        ({"max_body": 0}, "--max-body 0 is out of range"),
        ({"chat_template_kwargs": "{"}, "--chat-template-kwargs is not valid JSON"),
        ({"reasoning_budget": -2}, "--reasoning-budget -2: give a number"),
        ({"pooling": "rank"}, "--pooling rank is not supported"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(GgrunError, match=said):
        settings(**given)


def test_an_empty_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n\n")
    with pytest.raises(GgrunError, match="holds no key"):
        settings(api_key_file=str(tmp_path / "keys"))


def test_words() -> None:
    assert words(["a, b,", "c"]) == ["a", "b", "c"]
    assert words(None) == []
