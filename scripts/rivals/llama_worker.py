"""llama.cpp as a worker, run by the rival's own Python: `python llama_worker.py MODEL THREADS repack|mapped|start|about`.

repack, mapped: answers requests, with weights repacked at load or read from the file's mapping. start: one token, and what it took.
Only the low-level bindings are used, and loaded without the package's own imports (NumPy, Jinja), which llama.cpp does not need.
Knows nothing of ggrun. What a request means stands in ggrun_worker.py, which answers the same ones.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import sys
import types
from time import monotonic, perf_counter
from typing import Any

CHUNK, N_BATCH, N_UBATCH = 512, 2048, 512
N_WARM = 32  # tokens of a prompt behind a context in the run that does not count


def bindings() -> Any:
    """The module llama_cpp.llama_cpp without llama_cpp/__init__.py."""
    found = importlib.util.find_spec("llama_cpp")
    assert found
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


L = bindings()
LOG = L.llama_log_callback(lambda level, text, data: None if level < 4 else sys.stderr.write(text.decode()) and None)


def some_ids(n: int) -> list[int]:
    """Ordinary tokens of any vocabulary measured here."""
    return [100 + 17 * i % 1000 for i in range(n)]


def private_bytes() -> int:
    """Private anonymous memory of this process: what `Anonymous` of smaps_rollup counts."""
    with open("/proc/self/smaps_rollup") as rollup:
        return next(1024 * int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))


def load(path: str, repack: bool) -> Any:
    L.llama_log_set(LOG, None)
    L.llama_backend_init()
    parameters = L.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = repack
    model = L.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    return model


def new_context(model: Any, n_threads: int, n_ctx: int, n_parallel: int, flash: int) -> Any:
    """n_ctx tokens for each of n_parallel sequences, by default in KV streams of their own; one alone in a stream to fill by CHUNKs."""
    parameters = L.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = n_parallel * n_ctx, N_BATCH, N_UBATCH
    parameters.n_threads = parameters.n_threads_batch = n_threads
    parameters.n_seq_max, parameters.kv_unified = (n_parallel, False) if n_parallel > 1 else (-(-n_ctx // CHUNK), True)
    parameters.flash_attn_type = flash
    context = L.llama_init_from_model(model, parameters)
    if not context:
        sys.exit(f"llama.cpp cannot make a context of {n_ctx} tokens")
    return context


class Engine:
    """A model and its contexts, one for each size and kind of attention that was asked for."""

    def __init__(self, path: str, n_threads: int, repack: bool) -> None:
        self.n_threads = n_threads
        self.model = load(path, repack)
        self.contexts: dict[tuple[int, int, int], Any] = {}
        self.batch = L.llama_batch_init(N_BATCH, 0, 1)
        self.depths: dict[tuple[int, int, int], int] = {}  # tokens that sequence 0 of a context keeps between runs

    def context(self, n_ctx: int, n_parallel: int, flash: int) -> dict[str, float]:
        key = n_ctx, n_parallel, flash
        if key not in self.contexts:
            self.contexts[key] = new_context(self.model, self.n_threads, *key)
            self.depths[key] = 0
        self.key = key
        self.now = self.contexts[key]
        self.memory = L.llama_get_memory(self.now)
        return {}

    def warm(self, case: dict[str, int], deepest: int, state: str) -> dict[str, float]:
        if case["n_depth"] != self.depths[self.key]:
            self.fill(deepest, state)
            self.depths[self.key] = case["n_depth"]
        self.truncate(1, case["n_depth"])
        self.run(case | ({"n_prompt": min(case["n_prompt"], N_WARM)} if case["n_depth"] else {}) | {"n_gen": min(case["n_gen"], 1)})
        return {}

    def run(self, case: dict[str, int]) -> dict[str, float]:
        depth, seqs = case["n_depth"], list(range(case["n_parallel"]))
        prompt, answer = some_ids(case["n_prompt"]), some_ids(case["n_gen"])
        start = perf_counter()
        self.append(prompt, depth, 0)
        for i, id_ in enumerate(answer):
            self.decode([id_] * len(seqs), [depth + len(prompt) + i] * len(seqs), seqs, [True] * len(seqs))
        seconds = perf_counter() - start
        self.truncate(len(seqs), depth)
        return {"seconds": seconds}

    def decode(self, ids: list[int], positions: list[int], seqs: list[int], wanted: list[bool]) -> None:
        b = self.batch
        b.n_tokens = len(ids)
        for i, (id_, position, seq, logits) in enumerate(zip(ids, positions, seqs, wanted)):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = id_, position, 1, logits
            b.seq_id[i][0] = seq
        if L.llama_decode(self.now, b):
            sys.exit("llama_decode failed")
        L.llama_synchronize(self.now)

    def append(self, ids: list[int], at: int, seq: int) -> None:
        """A prompt from a position on, with the logits of its last token."""
        for first in range(0, len(ids), N_BATCH):
            part = ids[first : first + N_BATCH]
            wanted = [first + i == len(ids) - 1 for i in range(len(part))]
            self.decode(part, [at + first + i for i in range(len(part))], [seq] * len(part), wanted)

    def fill(self, n: int, state: str) -> None:
        """What a cell holds does not change the speed, and cells a token may not see are skipped: sequences of CHUNK tokens, joined."""
        L.llama_memory_clear(self.memory, False)
        ids = some_ids(n)
        if not os.path.exists(state):
            for chunk, first in enumerate(range(0, n, CHUNK)):
                self.append(ids[first : first + CHUNK], first, chunk)
            for chunk in range(1, -(-n // CHUNK)):
                L.llama_memory_seq_cp(self.memory, chunk, 0, -1, -1)
                L.llama_memory_seq_rm(self.memory, chunk, -1, -1)
            os.makedirs(os.path.dirname(state), exist_ok=True)
            L.llama_state_seq_save_file(self.now, (state + ".part").encode(), 0, (L.llama_token * n)(*ids), n)
            os.rename(state + ".part", state)
        else:
            read, tokens = ctypes.c_size_t(), (L.llama_token * n)()
            if not L.llama_state_seq_load_file(self.now, state.encode(), 0, tokens, n, ctypes.byref(read)) or read.value != n:
                sys.exit(f"{state} does not fit this context; remove it")

    def truncate(self, n_seqs: int, depth: int) -> None:
        for seq in range(n_seqs):
            L.llama_memory_seq_rm(self.memory, seq, depth, -1)


def first_token(path: str, n_threads: int) -> dict[str, object]:
    """Load, tokenize "Hello" and compute its logits, with llama.cpp's defaults."""
    begun = monotonic()
    model = load(path, True)
    context = new_context(model, n_threads, 4096, 1, L.LLAMA_FLASH_ATTN_TYPE_AUTO)
    ids = (L.llama_token * 16)()
    n = L.llama_tokenize(L.llama_model_get_vocab(model), b"Hello", 5, ids, 16, True, True)
    if L.llama_decode(context, L.llama_batch_get_one(ids, n)):
        sys.exit("llama_decode failed")
    L.llama_get_logits_ith(context, -1)
    return {"begun": begun, "ended": monotonic(), "private": private_bytes()}


def about() -> dict[str, object]:
    base = ctypes.CDLL(os.path.join(sys.modules["llama_cpp"].__path__[0], "lib", "libggml-base.so"))
    base.ggml_version.restype = base.ggml_commit.restype = ctypes.c_char_p
    from importlib.metadata import version

    return {
        "package": version("llama-cpp-python"),
        "ggml": base.ggml_version().decode(),
        "commit": base.ggml_commit().decode(),
        "system": L.llama_print_system_info().decode(),
    }


def main() -> None:
    path, n_threads, mode = sys.argv[1:]
    if mode == "start":
        print(json.dumps(first_token(path, int(n_threads))), flush=True)
        os._exit(0)
    if mode == "about":
        print(json.dumps(about()))
        return
    engine = Engine(path, int(n_threads), mode == "repack")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(engine, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
