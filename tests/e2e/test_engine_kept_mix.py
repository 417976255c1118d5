"""Everything at once in a pool that is too small: answers, embeddings, slots and cancellations of many threads, each as it is alone."""

import random
import threading
from pathlib import Path

import numpy as np

from ggrun import Engine, Sampling
from ggrun.errors import GgrunError
from ggrun.runtime.executor import Cancelled
from tests.oracle.models import LOCAL

MODEL = LOCAL / "llama-gqa.Q4_K_M.gguf"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
RNG = np.random.default_rng(17)
BEGINNINGS = [[int(i) for i in RNG.integers(3, 380, n)] for n in (70, 96, 33)]
PROMPTS = [[*BEGINNINGS[i % 3], *(int(i) for i in RNG.integers(3, 380, 5 + 9 * i))] for i in range(9)]
N_THREADS, ROUNDS = 6, 25


def test_everything_at_once(tmp_path: Path) -> None:
    with Engine.open(MODEL, n_ctx=256) as engine:
        alone = [engine.submit(prompt, GREEDY, n_predict=12).wait().ids for prompt in PROMPTS]
        rows = [engine.embed(prompt, "last") for prompt in PROMPTS]
        shape = engine.plan.shape
    assert shape.n_ctx == 256
    problems: list[str] = []
    reused = []
    options = {"n_ctx": 256, "kv_tokens": 416, "n_parallel": 3, "n_ubatch": 40, "cram_mib": 1, "disk_cache": tmp_path, "disk_cache_mib": 1}

    def work(engine: Engine, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            which = rng.randrange(len(PROMPTS))
            match rng.randrange(6):
                case 0:
                    engine.submit(PROMPTS[which], GREEDY).cancel()
                case 1:
                    calls = iter([False] * rng.randrange(3))
                    try:
                        row = engine.embed(PROMPTS[which], "last", lambda calls=calls: next(calls, True))
                        if not np.array_equal(row, rows[which]):
                            problems.append(f"embedding {which}")
                    except Cancelled:
                        pass
                case 2:
                    path = tmp_path / f"slot{seed}"
                    try:
                        engine.save_slot(rng.randrange(3), path)
                        engine.restore_slot(rng.randrange(3), path)
                        engine.erase_slot(rng.randrange(3))
                    except GgrunError as error:
                        if "at work" not in str(error):
                            problems.append(str(error))
                case _:
                    generation = engine.submit(PROMPTS[which], GREEDY, n_predict=12).wait()
                    reused.append(generation.timings.cache_n)
                    if generation.ids != alone[which]:
                        problems.append(f"answer {which}: {generation.ids} instead of {alone[which]}, {generation.timings.cache_n} found")

    for _ in range(2):  # the second finds what the first left on disk
        with Engine.open(MODEL, **options) as engine:
            threads = [threading.Thread(target=work, args=(engine, seed)) for seed in range(N_THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
                assert not thread.is_alive()
            status = engine.status()
            assert (status.kv_used, status.n_waiting) == (0, 0)
            assert all(slot.state == "idle" for slot in status.slots)
            assert not engine._loop._embedder.queue
    assert not problems, problems[:5]
    assert max(reused) >= 64
