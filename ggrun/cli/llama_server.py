"""The flags of llama-server that `ggrun serve` has not: which are accepted without effect, which are refused, and what is said of each.

A flag that changes only speed, memory or logs is accepted with a note, so that a script written for llama-server starts; one that would
change answers, or what is exposed, is refused. Read from llama.cpp's table of arguments (tools/server/README.md, late 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from ggrun.errors import GgrunError


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """One flag. n_values: arguments that follow it. env: the variable that sets it. answer: what is said."""

    name: str
    n_values: int
    env: str | None
    refused: bool
    answer: str


THREADS = "threads are placed by the system; taskset says where"
FILES = "ggrun downloads nothing; download the GGUF file and name it with -m"
SPECULATION = "answers are the same without speculative decoding, only slower"
IMAGES = "only text is understood here"
LOGS = "what is logged are plain sentences on stderr"
TOOLS = "ggrun runs no tools and no MCP servers; requests bring their own tools"
ROPE = "positions are scaled as the file's metadata says"
ADAPTERS = "adapters and control vectors are not supported"
SLIDING = "no model here has a sliding window"
STARTS = "requests name their own, as grammar, json_schema or response_format"
PAGE = "the page has settings of its own"

# sentence: flags, each with as many words after it as it takes values, and the variable that sets it after "="
ACCEPTED: Mapping[str, str] = {
    THREADS: "-C M, --cpu-mask M, -Cr L, --cpu-range L, --cpu-strict N, --prio N, --poll N, -Cb M, --cpu-mask-batch M, -Crb L,"
    "--cpu-range-batch L, --cpu-strict-batch N, --prio-batch N, --poll-batch N",
    "memory is spread by the system; numactl says how": "--numa T=LLAMA_ARG_NUMA",
    SLIDING: "--swa-full=LLAMA_ARG_SWA_FULL, -ctxcp N, --ctx-checkpoints N=LLAMA_ARG_CTX_CHECKPOINTS, --swa-checkpoints N,"
    "-cms N, --checkpoint-min-step N=LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT",
    "answers always carry timings": "--perf=LLAMA_ARG_PERF, --no-perf",
    "weights stay as they are in the file": "--repack=LLAMA_ARG_REPACK, -nr, --no-repack, --no-host=LLAMA_ARG_NO_HOST",
    "keys and values lie in blocks, which need no defragmentation": "-dt N, --defrag-thold N=LLAMA_ARG_DEFRAG_THOLD",
    "-lm says how weights are loaded": "-lzm M, --lazy-mode M=LLAMA_ARG_LAZY_MODE",
    "experts on the CPU stay there; -ncmoe says how many": "--moe-cache-mib N=LLAMA_ARG_MOE_CACHE_MIB",
    "lengths are always checked, values as they are used": "--check-tensors",
    "nothing is ever fetched from the network": "--offline=LLAMA_ARG_OFFLINE",
    LOGS: "--log-disable, --log-colors W=LLAMA_ARG_LOG_COLORS, --log-prefix=LLAMA_ARG_LOG_PREFIX, --no-log-prefix,"
    "--log-timestamps=LLAMA_ARG_LOG_TIMESTAMPS, --no-log-timestamps, --log-jsonl=LLAMA_ARG_LOG_JSONL, --no-log-jsonl, -lv N,"
    "--verbosity N, --log-verbosity N=LLAMA_ARG_LOG_VERBOSITY",
    f"{LOGS}; 2> FILE keeps them": "--log-file F=LLAMA_ARG_LOG_FILE",
    "all slots share one pool of keys and values": "-kvu, --kv-unified=LLAMA_ARG_KV_UNIFIED, -no-kvu, --no-kv-unified",
    "what a slot computed stays in the pool until its place is needed": "--cache-idle-slots=LLAMA_ARG_CACHE_IDLE_SLOTS,"
    "--no-cache-idle-slots",
    "there is nothing to warm up": "--warmup, --no-warmup",
    "tokens are chosen on the CPU": "-bs, --backend-sampling=LLAMA_ARG_BACKEND_SAMPLING",
    IMAGES: "--mmproj-auto=LLAMA_ARG_MMPROJ_AUTO, --no-mmproj, --no-mmproj-auto, --mmproj-offload=LLAMA_ARG_MMPROJ_OFFLOAD,"
    "--no-mmproj-offload, -mmdev D, --mmproj-device D=MTMD_BACKEND_DEVICE, --image-min-tokens N=LLAMA_ARG_IMAGE_MIN_TOKENS,"
    "--image-max-tokens N=LLAMA_ARG_IMAGE_MAX_TOKENS, --mtmd-batch-max-tokens N=LLAMA_ARG_MTMD_BATCH_MAX_TOKENS,"
    "--video-fps N=LLAMA_ARG_VIDEO_FPS, --video-timestamp-interval N=LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL,"
    "--video-ffmpeg-dir D=LLAMA_ARG_VIDEO_FFMPEG_DIR, --media-path P",
    "tags are shown nowhere": "--tags T=LLAMA_ARG_TAGS",
    "pages that --cors-origin lets in may use every method and header": "--cors-methods M=LLAMA_ARG_CORS_METHODS,"
    "--cors-headers H=LLAMA_ARG_CORS_HEADERS",
    "keys travel in headers; there are no cookies": "--cors-credentials=LLAMA_ARG_CORS_CREDENTIALS, --no-cors-credentials",
    PAGE: "--ui-config J=LLAMA_ARG_UI_CONFIG, --webui-config J, --ui-config-file F=LLAMA_ARG_UI_CONFIG_FILE, --webui-config-file F",
    "that is so anyway": "--no-ui-mcp-proxy, --no-webui-mcp-proxy, -no-ag, --no-agent, --no-skip-chat-parsing,"
    "--reasoning-preserve=LLAMA_ARG_REASONING_PRESERVE, --models-autoload=LLAMA_ARG_MODELS_AUTOLOAD",
    "memory decides how many models are open": "--models-max N=LLAMA_ARG_MODELS_MAX",
    SPECULATION: "-md F, --model-draft F=LLAMA_ARG_SPEC_DRAFT_MODEL, --spec-draft-model F, -hfd R, -hfrd R, --hf-repo-draft R,"
    "--spec-draft-hf R=LLAMA_ARG_SPEC_DRAFT_HF_REPO, -td N, --threads-draft N, --spec-draft-threads N, -tbd N, --threads-batch-draft N,"
    "--spec-draft-threads-batch N, -Cd M, --cpu-mask-draft M, --spec-draft-cpu-mask M, -Crd R, --cpu-range-draft R,"
    "--spec-draft-cpu-range R, --cpu-strict-draft N, --spec-draft-cpu-strict N, --prio-draft N, --spec-draft-prio N, --poll-draft N,"
    "--spec-draft-poll N, -Cbd M, --cpu-mask-batch-draft M, --spec-draft-cpu-mask-batch M, --cpu-strict-batch-draft N,"
    "--spec-draft-cpu-strict-batch N, --prio-batch-draft N, --spec-draft-prio-batch N, --poll-batch-draft N, --spec-draft-poll-batch N,"
    "-otd P, --override-tensor-draft P, --spec-draft-override-tensor P, -cmoed, --cpu-moe-draft,"
    "--spec-draft-cpu-moe=LLAMA_ARG_SPEC_DRAFT_CPU_MOE, -ncmoed N, --n-cpu-moe-draft N, --spec-draft-ncmoe N,"
    "--spec-draft-n-cpu-moe N=LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE, --spec-draft-n-max N=LLAMA_ARG_SPEC_DRAFT_N_MAX,"
    "--spec-draft-n-min N=LLAMA_ARG_SPEC_DRAFT_N_MIN, --spec-synth-len L=LLAMA_ARG_SPEC_SYNTH_LEN,"
    "--spec-synth-rates P=LLAMA_ARG_SPEC_SYNTH_RATES, --draft-p-split P, --spec-draft-p-split P=LLAMA_ARG_SPEC_DRAFT_P_SPLIT,"
    "--draft-p-min P, --spec-draft-p-min P=LLAMA_ARG_SPEC_DRAFT_P_MIN, --no-spec-draft-backend-sampling,"
    "--spec-draft-backend-sampling=LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING, --spec-draft-sampling S=LLAMA_ARG_SPEC_DRAFT_SAMPLING,"
    "-devd D, --device-draft D, --spec-draft-device D, -ngld N, --gpu-layers-draft N, --n-gpu-layers-draft N,"
    "--spec-draft-ngl N=LLAMA_ARG_N_GPU_LAYERS_DRAFT, --spec-type T=LLAMA_ARG_SPEC_TYPE, --spec-ngram-mod-n-min N,"
    "--spec-ngram-mod-n-max N, --spec-ngram-mod-n-match N, --spec-ngram-simple-size-n N, --spec-ngram-simple-size-m N,"
    "--spec-ngram-simple-min-hits N, --spec-ngram-map-k-size-n N, --spec-ngram-map-k-size-m N, --spec-ngram-map-k-min-hits N,"
    "--spec-ngram-map-k4v-size-n N, --spec-ngram-map-k4v-size-m N, --spec-ngram-map-k4v-min-hits N, --draft N, --draft-n N,"
    "--draft-max N=LLAMA_ARG_DRAFT_MAX, --draft-min N=LLAMA_ARG_DRAFT_MIN, --draft-n-min N, --spec-ngram-size-n N,"
    "--spec-ngram-size-m N, --spec-ngram-min-hits N, -ctkd T, --cache-type-k-draft T,"
    "--spec-draft-type-k T=LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K, -ctvd T, --cache-type-v-draft T,"
    "--spec-draft-type-v T=LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V, -lcs F, --lookup-cache-static F, -lcd F, --lookup-cache-dynamic F,"
    "--spec-default",
}
REFUSED: Mapping[str, str] = {
    FILES: "-mu U, --model-url U=LLAMA_ARG_MODEL_URL, -dr R, --docker-repo R=LLAMA_ARG_DOCKER_REPO, -hf R, -hfr R,"
    "--hf-repo R=LLAMA_ARG_HF_REPO, -hff F, --hf-file F=LLAMA_ARG_HF_FILE, -hft T, --hf-token T, -cl, --cache-list,"
    "--embd-gemma-default, --fim-qwen-1.5b-default, --fim-qwen-3b-default, --fim-qwen-7b-default, --fim-qwen-7b-spec,"
    "--fim-qwen-14b-spec, --fim-qwen-30b-default, --gpt-oss-20b-default, --gpt-oss-120b-default, --vision-gemma-4b-default,"
    "--vision-gemma-12b-default",
    IMAGES: "-mm F, --mmproj F=LLAMA_ARG_MMPROJ, -mmu U, --mmproj-url U=LLAMA_ARG_MMPROJ_URL",
    ROPE: "--rope-scaling T=LLAMA_ARG_ROPE_SCALING_TYPE, --rope-scale N=LLAMA_ARG_ROPE_SCALE, --rope-freq-base N=LLAMA_ARG_ROPE_FREQ_BASE,"
    "--rope-freq-scale N=LLAMA_ARG_ROPE_FREQ_SCALE, --yarn-orig-ctx N=LLAMA_ARG_YARN_ORIG_CTX,"
    "--yarn-ext-factor N=LLAMA_ARG_YARN_EXT_FACTOR, --yarn-attn-factor N=LLAMA_ARG_YARN_ATTN_FACTOR,"
    "--yarn-beta-slow N=LLAMA_ARG_YARN_BETA_SLOW,"
    "--yarn-beta-fast N=LLAMA_ARG_YARN_BETA_FAST",
    "metadata is taken as the file has it": "--override-kv K",
    ADAPTERS: "--lora F, --lora-scaled F, --lora-init-without-apply, --control-vector F, --control-vector-scaled F,"
    "--control-vector-layer-range A B",
    "other machines' devices are not used": "--rpc S=LLAMA_ARG_RPC",
    STARTS: "--grammar G, --grammar-file F, -j S, --json-schema S, -jf F, --json-schema-file F",
    "adaptive-p is not supported": "--adaptive-target N, --adaptive-decay N",
    "-c is what one conversation may grow to, and --kv-tokens the pool": "--kv-unified-per-slot N=LLAMA_ARG_KV_UNIFIED_PER_SLOT",
    "the order of /infill is the one the vocabulary's tokens mean": "--spm-infill",
    "two programs at one port would answer in turns": "--reuse-port=LLAMA_ARG_REUSE_PORT",
    "the page at / is ggrun's own; --no-webui leaves it out": "--path P=LLAMA_ARG_STATIC_PATH",
    TOOLS: "--tools T=LLAMA_ARG_TOOLS, --tools-runtime R=LLAMA_ARG_TOOLS_RUNTIME, --mcp-servers-config P=LLAMA_ARG_MCP_SERVERS_CONFIG,"
    "--mcp-servers-json J=LLAMA_ARG_MCP_SERVERS_JSON, -ag, --agent=LLAMA_ARG_AGENT, --ui-mcp-proxy=LLAMA_ARG_UI_MCP_PROXY,"
    "--webui-mcp-proxy",
    "models.toml names several models": "--models-dir P=LLAMA_ARG_MODELS_DIR, --models-preset P=LLAMA_ARG_MODELS_PRESET,"
    "--no-models-autoload",
    "what a template keeps of earlier thoughts is its own business; --chat-template-kwargs may tell it": "--no-reasoning-preserve",
    "tool calls and thoughts are always told apart; --reasoning-format none leaves thoughts in the text": "--skip-chat-parsing"
    "=LLAMA_ARG_SKIP_CHAT_PARSING",
    "prompts are written nowhere": "--log-prompts-dir P",
    "embeddings have length one": "--embd-normalize N",
    "self-extend is not supported": "-gan N, --grp-attn-n N=LLAMA_ARG_GRP_ATTN_N, -gaw N, --grp-attn-w N=LLAMA_ARG_GRP_ATTN_W",
    "there is no completion script": "--completion-bash",
}


def _rows(table: Mapping[str, str], refused: bool) -> list[Elsewhere]:
    rows = []
    for answer, flags in table.items():
        for text in flags.split(","):
            words, _, env = text.strip().partition("=")
            name, *values = words.split()
            rows.append(Elsewhere(name, len(values), env or None, refused, answer))
    return rows


FLAGS: Mapping[str, Elsewhere] = {row.name: row for row in [*_rows(ACCEPTED, False), *_rows(REFUSED, True)]}
SAME: Mapping[tuple[str, str], str] = {  # values of refused flags that ask for what is so anyway
    ("--embd-normalize", "2"): "embeddings have length one",
    ("--adaptive-target", "-1"): "adaptive-p is not supported",
}


def answer(name: str, values: list[str]) -> str:
    """What is said of a flag that has no effect. Raises GgrunError for one that is refused."""
    row = FLAGS[name]
    if row.refused and (name, " ".join(values)) not in SAME:
        raise GgrunError(f"{name}: {row.answer}")
    return f"{name} has no effect: {row.answer}"


def answers_to(environment: Mapping[str, str], own: Set[str]) -> list[str]:
    """The same for variables. own: those that flags of ours read."""
    by_variable = {row.env: row for row in FLAGS.values() if row.env}
    known = {*by_variable, *own, *(name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_", 1) for name in own), "LLAMA_ARG_MODEL"}
    said = [
        f"{name} is not known here and has no effect" for name in sorted(environment) if name.startswith("LLAMA_ARG_") and name not in known
    ]
    for variable in sorted(set(environment) & set(by_variable)):
        row = by_variable[variable]
        if row.refused and environment[variable].lower() not in ("", "0", "off", "false", "disabled", "none"):
            raise GgrunError(f"{variable}: {row.answer}")
        said.append(f"{variable} has no effect: {row.answer}")
    return said
