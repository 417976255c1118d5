"""scripts/make_model.py: real shapes, llama.cpp's mixes, sane weights, bounded memory, a usable vocabulary."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.gguf import GgufWriter, open_gguf
from ggrun.models.registry import build_program
from ggrun.runtime.executor import Batch
from ggrun.runtime.reference import ReferenceExecutor
from ggrun.text import load_tokenizer
from quant.reference import dequantize

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_model.py"
MIB = 1 << 20


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_model"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_model"]


@pytest.fixture(scope="module")
def small_vocab(tmp_path_factory):
    """A file with 256 byte tokens and two special ones, so that embeddings stay small."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    writer = GgufWriter(path)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    tokens = [chr(b) if b in printable else chr(next(others)) for b in range(256)] + ["<|im_start|>", "<|im_end|>"]
    writer.add("general.architecture", "qwen2")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "qwen2")
    writer.add("tokenizer.ggml.tokens", tokens)
    writer.add("tokenizer.ggml.token_type", np.array([1] * 256 + [3, 3], np.int32))
    writer.add("tokenizer.ggml.merges", ["a b"])
    writer.add("tokenizer.ggml.eos_token_id", 257)
    writer.write()
    return str(path)


@pytest.fixture
def path(tmp_path):
    """Where to write a model; it is removed at once, for pytest keeps folders of several runs and models are large."""
    path = tmp_path / "model.gguf"
    yield str(path)
    path.unlink(missing_ok=True)


def run_script(*args, before=()):
    """Exit status, output and errors of the command."""
    done = subprocess.run([sys.executable, *before, SCRIPT, *map(str, args)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("model", "mix", "mib", "billions"),
    [  # as llama-bench prints them for the published files
        ("llama-3.2-1b", "q4_k_m", 762.81, 1.24),
        ("llama-3.2-1b", "q8_0", 1252.41, 1.24),
        ("llama-3.1-8b", "q4_k_m", 4685.31, 8.03),
        ("llama-3.1-8b", "q8_0", 8137.65, 8.03),
        ("qwen3-0.6b", "q8_0", 604.15, 0.596),
        ("qwen3-14b", "q4_k_m", 8.38 * 1024, 14.77),
    ],
)
def test_sizes_are_those_of_the_published_files(script, model, mix, mib, billions):
    shape = script.SHAPES[model]
    n_bytes = n_parameters = 0
    for name, layer, dims, deviation in script.tensors(shape, shape.n_layers, shape.specials.n_vocab):
        short = name.rpartition(".")[2]
        fmt = script.matrix_format(mix, short, layer, shape.n_layers, shape.tied) if deviation else script.format_by_name("F32")
        n_bytes += fmt.row_bytes(int(np.prod(dims)))
        n_parameters += int(np.prod(dims))
    assert n_bytes / MIB == pytest.approx(mib, rel=1e-3)
    assert n_parameters / 1e9 == pytest.approx(billions, rel=5e-3)


def test_layers_with_more_bits(script):
    """Of 16 layers: two at each end and every third between, as llama.cpp's quantizer chooses."""
    assert [i for i in range(16) if script.more_bits(i, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert sum(script.more_bits(i, 32) for i in range(32)) == 16


@pytest.mark.parametrize(
    ("model", "mix"),
    [
        ("llama-3.2-1b", "q4_k_m"),
        ("llama-3.2-1b", "q6_k"),
        ("llama-3.2-1b", "q8_0"),
        ("llama-3.1-8b", "q4_k_m"),
        ("qwen3-0.6b", "q6_k"),
        ("qwen3-14b", "q4_k_m"),
    ],
)
def test_formats_metadata_and_weights(script, small_vocab, path, model, mix):
    script.make(model, mix, path, vocab=small_vocab, layers=1)
    shape = script.SHAPES[model]
    with open_gguf(path) as file:
        formats = {name: tensor.format.name for name, tensor in file.tensors.items()}
        head = "token_embd.weight" if shape.tied else "output.weight"
        assert formats[head] == ("Q8_0" if mix == "q8_0" else "Q6_K")
        assert formats["blk.0.attn_v.weight"] == ("Q8_0" if mix == "q8_0" else "Q6_K")
        assert formats["blk.0.attn_q.weight"] == {"q4_k_m": "Q4_K", "q6_k": "Q6_K", "q8_0": "Q8_0"}[mix]
        assert formats["blk.0.attn_norm.weight"] == formats["output_norm.weight"] == "F32"
        assert ("output.weight" in formats) == (not shape.tied)
        assert ("rope_freqs.weight" in formats) == model.startswith("llama")
        assert ("blk.0.attn_q_norm.weight" in formats) == model.startswith("qwen3")
        assert file.metadata["general.file_type"] == {"q4_k_m": 15, "q6_k": 18, "q8_0": 7}[mix]
        assert file.metadata[f"{shape.architecture}.attention.key_length"] == shape.head_dim
        assert "<|im_start|>" in file.metadata["tokenizer.chat_template"]
        for name in ("blk.0.attn_v.weight", "blk.0.attn_k.weight", head):
            tensor = file.tensors[name]
            weights = dequantize(tensor.format, tensor.raw[: 256 * tensor.row_bytes].reshape(-1, tensor.row_bytes))
            wanted = (4 if name == head else 1) * tensor.dims[0] ** -0.5
            assert np.isfinite(weights).all()
            assert weights.std() == pytest.approx(wanted, rel=0.05)
            assert abs(weights.mean()) < 0.05 * wanted
            assert len(np.unique(weights[:4])) > 500
        build_program(file.metadata, file.tensors)


def test_logits_are_neither_flat_nor_wild(script, small_vocab, path):
    script.make("qwen3-0.6b", "q8_0", path, vocab=small_vocab, layers=6)
    with open_gguf(path) as file:
        _, program = build_program(file.metadata, file.tensors)
        ids = np.arange(40, 52, dtype=np.int32)
        rows = np.arange(len(ids), dtype=np.int32)
        batch = Batch(ids, rows, np.zeros_like(ids), np.zeros((1, 1), np.int32), rows)
        logits = ReferenceExecutor(program, file.tensors, 1).run(batch)
    assert np.isfinite(logits).all()
    assert 2.5 < logits.std() < 6
    assert len(set(logits.argmax(axis=1).tolist())) > 3


@pytest.mark.parametrize("model", ["llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-14b"])
def test_the_engine_loads_and_continues_every_shape(script, small_vocab, path, model):
    script.make(model, "q4_k_m", path, vocab=small_vocab, layers=1)
    generates(path)


@pytest.mark.slow
def test_a_whole_1b_model_loads_and_generates(script, path):
    script.make("llama-3.2-1b", "q4_k_m", path)
    generates(path)


def generates(path):
    with Engine.open(path, n_ctx=64) as engine:
        prompt = list(range(40, 52))
        first, again = (engine.submit(prompt, Sampling(temperature=0, ignore_eos=True), n_predict=6).wait() for _ in range(2))
    assert len(first.ids) == 6
    assert first.ids == again.ids


def test_rope_factors(script):
    """As Llama 3.1 defines them: fast frequencies kept, slow ones divided by the factor, a ramp between."""
    factors = script.rope_factors(script.SHAPES["llama-3.1-8b"])
    assert factors.shape == (64,)
    assert (factors[:29] == 1).all()
    assert np.allclose(factors[35:], 8)
    assert (np.diff(factors[28:36]) > 0).all()


def test_seed_decides_the_bytes(script, small_vocab, tmp_path):
    paths = [str(tmp_path / f"{i}.gguf") for i in range(4)]
    for path, seed, layers in zip(paths, (0, 0, 1, 0), (1, 1, 1, 2)):
        script.make("qwen3-0.6b", "q4_k_m", path, vocab=small_vocab, seed=seed, layers=layers)
    first, same, other = (Path(path).read_bytes() for path in paths[:3])
    assert first == same != other
    with open_gguf(paths[0]) as short, open_gguf(paths[3]) as long:
        name = "blk.0.ffn_up.weight"
        assert np.array_equal(short.tensors[name].raw, long.tensors[name].raw)


@pytest.mark.parametrize(
    ("model", "start", "end", "n_vocab"), [("llama-3.2-1b", 128000, 128009, 128256), ("qwen3-0.6b", 151643, 151645, 151936)]
)
def test_made_up_vocabulary(script, model, start, end, n_vocab):
    metadata = script.made_up_vocabulary(script.SHAPES[model].specials)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(metadata["tokenizer.ggml.token_type"]) == n_vocab
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.n_vocab == n_vocab
    text = "What does os.path.join do?\n  naïve 漢字 🙂"
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())
    chat = tokenizer.encode(tokens[end] + "hi" + tokens[start + 1], parse_special=True, add_special=False)
    assert chat[0] == end
    assert chat[-1] == start + 1
    assert end in tokenizer.end_of_generation


def test_command_with_a_made_up_vocabulary_in_bounded_memory(path):
    # the peak of the process itself: rusage would count the pages of pytest that it was forked from
    tell_peak = "import runpy, sys, atexit; del sys.argv[0]; atexit.register(lambda: print(open('/proc/self/status').read()))"
    wrapper = ["-c", f"{tell_peak}; runpy.run_path(sys.argv[0], run_name='__main__')"]
    status, out, err = run_script("llama-3.2-1b", "q4_k_m", path, "--layers", 2, before=wrapper)
    assert (status, err) == (0, "")
    assert path in out
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", out)[1])
    assert Path(path).stat().st_size > 280e6
    assert peak < 200e6
    with open_gguf(path) as file:
        assert len(file.tensors) == 3 + 2 * 9
        assert file.metadata["general.size_label"] == "384M"
        assert file.metadata["llama.block_count"] == 2


@pytest.mark.parametrize("vocab", ["llama-bpe", "qwen2"])
def test_real_vocabulary_is_copied(script, shared, path, vocab):
    source = shared / "vocab" / f"ggml-vocab-{vocab}.gguf"
    copied = script.copied_vocabulary(str(source))
    with open_gguf(source) as file:
        keys = {key for key in file.metadata if key.startswith("tokenizer.")}
        assert set(copied) == keys | {"tokenizer.chat_template"}
        assert list(copied["tokenizer.ggml.merges"]) == list(file.metadata["tokenizer.ggml.merges"])
    script.make("qwen3-0.6b", "q6_k", path, vocab=str(source), layers=1)
    with open_gguf(path) as made:
        assert made.tensors["token_embd.weight"].dims == (1024, len(copied["tokenizer.ggml.tokens"]))
        assert load_tokenizer(made.metadata).encode("Hello world") == load_tokenizer(copied).encode("Hello world")


def test_mistakes_are_sentences(tmp_path, small_vocab):
    status, _, err = run_script("qwen3-0.6b", "q8_0", tmp_path / "x.gguf", "--vocab", tmp_path / "missing.gguf")
    assert status == 1
    assert err.startswith("error: ")
    assert "missing.gguf" in err
    assert len(err.splitlines()) == 1
    status, _, err = run_script("qwen3-0.6b", "q8_0", tmp_path / "no" / "x.gguf", "--vocab", small_vocab, "--layers", 1)
    assert status == 1
    assert len(err.splitlines()) == 1
    status, _, err = run_script("gpt-5", "q8_0", tmp_path / "x.gguf")
    assert status == 2
    assert "llama-3.2-1b" in err
    assert list(tmp_path.iterdir()) == []
