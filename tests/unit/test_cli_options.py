"""The flags: their names are llama.cpp's, what they show as default is the default, and they mean what they say."""

import re
from dataclasses import fields

import pytest

import ggrun
from ggrun.cli.app import app, main
from ggrun.cli.options import EngineOptions, PromptOptions, SamplingOptions
from ggrun.engine.loading import Options
from ggrun.plan.pins import Pins
from tests.unit.fake_engine import FakeEngine

FLAGS = """
    -m --model -c --ctx-size -n --predict --n-predict --keep -b --batch-size -ub --ubatch-size -t --threads -tb --threads-batch
    -ngl --gpu-layers --n-gpu-layers -fa --flash-attn -ctk --cache-type-k -ctv --cache-type-v -np --parallel
    -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe -ncffn --n-cpu-ffn -nkvo --no-kv-offload -kvo --kv-offload -dev --device
    -ts --tensor-split -sm --split-mode -mg --main-gpu --vram-budget --ram-budget -fit --fit -fitt --fit-target -fitc --fit-ctx
    -lm --load-mode --mlock --no-mmap
    -s --seed --temp --temperature --top-k --top-p --min-p --typical --top-n-sigma --xtc-probability --xtc-threshold
    --repeat-penalty --repeat-last-n --presence-penalty --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length
    --dry-penalty-last-n --dry-sequence-breaker --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent
    --samplers --sampling-seq --sampler-seq -l --logit-bias --ignore-eos
    -p --prompt -f --file -sys --system-prompt -sysf --system-prompt-file -r --reverse-prompt -e --escape --no-escape
    --chat-template --chat-template-file --on-overflow --list-devices
""".split()
FORM = "--grammar --grammar-file -j --json-schema -jf --json-schema-file"
ONLY = {
    "chat": f"--json {FORM} -st --single-turn -mli --multiline-input -co --color --show-timings --no-show-timings",
    "run": f"--json {FORM} -cnv --conversation -no-cnv --no-conversation",
    "plan": "--json",
    "logits": "--tokens --out --executor",
    "tokenize": "--ids --no-bos --parse-special",
}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    kind = type("Engine", (FakeEngine,), {})
    monkeypatch.setitem(vars(ggrun), "Engine", kind)
    for name in ("LLAMA_ARG_MODEL", "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_THREADS", "LLAMA_ARG_N_PREDICT"):
        monkeypatch.delenv(name, raising=False)
    return kind


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "-no-cnv", "-p", "hello there", *arguments])
    return stopped.value.code


def names_of(command: str) -> set[str]:
    import typer

    group = typer.main.get_command(app)
    return {name for parameter in group.commands[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("command", ["chat", "run"])
def test_every_flag_users_know_is_there(command: str) -> None:
    assert not set(FLAGS) - names_of(command)


@pytest.mark.parametrize("command", ONLY)
def test_flags_of_one_command(command: str) -> None:
    assert not {*ONLY[command].split(), "-m", "--model"} - names_of(command)


def test_shown_defaults_are_the_defaults() -> None:
    sampling = ggrun.Sampling()
    shown = {field.name: field.type.__metadata__[0].show_default for field in fields(SamplingOptions)}
    for name, text in shown.items():
        value = getattr(sampling, name)
        if isinstance(value, tuple) and name == "samplers":
            assert text == ";".join(value)
        elif not isinstance(value, bool | tuple):
            assert float(re.sub(":.*", "", text)) == value, name


def test_tables_have_the_engines_names() -> None:
    assert {field.name for field in fields(SamplingOptions)} == {field.name for field in fields(ggrun.Sampling)}
    assert len(fields(EngineOptions)) + len(fields(PromptOptions)) > 20


def test_defaults(engine: type[FakeEngine]) -> None:
    assert run() == 0
    opened, submitted = engine.opened, engine.last.submitted[0]
    options = {name: opened.pop(name) for name in [*opened] if name not in ("model", "chat_template")}
    assert opened == {"model": None, "chat_template": None}
    assert Options(**options) == Options()
    shown = {field.name: field.type.__metadata__[0].show_default for field in fields(EngineOptions) if field.name != "placement"}
    for flag, name in (("n_batch",) * 2, ("n_ubatch",) * 2, ("n_parallel",) * 2, ("load_mode",) * 2, ("cache_type_k", "type_k")):
        assert shown[flag] == str(getattr(Options(), name))
    sampling = submitted["sampling"]
    assert sampling == ggrun.Sampling(seed=sampling.seed)
    assert sampling.seed >= 0  # drawn here, so that it can be told
    assert (submitted["n_predict"], submitted["stop"], submitted["keep"], submitted["on_overflow"]) == (-1, (), 0, "stop")


def test_everything_arrives(engine: type[FakeEngine], tmp_path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    line = f"-m {model} -c 4096 -t 3 -tb 2 -b 64 -ub 32 -np 2 -lm mmap -ngl 0 -fa on -ctk q4_0 -ctv Q8_0"
    line += " -s 7 --temp 0.5 --top-k 9 --top-p 0.8 --min-p 0.1 --typical 0.9 --top-n-sigma -1 --xtc-probability 0.2 --xtc-threshold 0.3"
    line += " --repeat-penalty 1.1 --repeat-last-n -1 --presence-penalty 0.3 --frequency-penalty -0.2 --dry-multiplier 0.8 --dry-base 2"
    line += " --dry-allowed-length 3 --dry-penalty-last-n 100 --dry-sequence-breaker none --dynatemp-range 0.1 --dynatemp-exp 1.5"
    line += " --mirostat 2 --mirostat-ent 4 --mirostat-lr 0.2 --samplers top-k;temp -l 5+1.5 --logit-bias 7-inf --ignore-eos"
    line += " -n -1 --keep 4 -r END -r STOP --on-overflow shift"
    assert run(*line.split()) == 0
    opened, submitted = engine.opened, engine.last.submitted[0]
    assert (opened["model"], opened["n_ctx"], opened["n_threads"], opened["n_threads_batch"]) == (model, 4096, 3, 2)
    assert (opened["n_batch"], opened["n_ubatch"], opened["n_parallel"], opened["load_mode"]) == (64, 32, 2, "mmap")
    assert (opened["type_k"], opened["type_v"]) == ("q4_0", "q8_0")
    assert submitted["sampling"] == ggrun.Sampling(
        seed=7,
        temperature=0.5,
        top_k=9,
        top_p=0.8,
        min_p=0.1,
        typical_p=0.9,
        top_n_sigma=-1.0,
        xtc_probability=0.2,
        xtc_threshold=0.3,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        presence_penalty=0.3,
        frequency_penalty=-0.2,
        dry_multiplier=0.8,
        dry_base=2.0,
        dry_allowed_length=3,
        dry_penalty_last_n=100,
        dry_sequence_breakers=(),
        dynatemp_range=0.1,
        dynatemp_exponent=1.5,
        mirostat=2,
        mirostat_tau=4.0,
        mirostat_eta=0.2,
        samplers=("top_k", "temperature"),
        logit_bias=((5, 1.5), (7, float("-inf"))),
        ignore_eos=True,
    )
    assert (submitted["n_predict"], submitted["stop"], submitted["keep"], submitted["on_overflow"]) == (-1, ("END", "STOP"), 4, "shift")


def test_environment_and_who_wins(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1024")
    monkeypatch.setenv("LLAMA_ARG_THREADS", "2")
    monkeypatch.setenv("LLAMA_ARG_NO_MMAP", "1")
    monkeypatch.setenv("LLAMA_ARG_MODEL", str(tmp_path / "a.gguf"))
    assert run("-t", "5") == 0
    assert (engine.opened["n_ctx"], engine.opened["n_threads"], engine.opened["model"]) == (1024, 5, tmp_path / "a.gguf")
    assert engine.opened["load_mode"] == "none"
    assert run("-m", str(tmp_path / "b.gguf")) == 0
    assert engine.opened["model"] == tmp_path / "b.gguf"
    assert run(str(tmp_path / "b.gguf")) == 0
    assert engine.opened["model"] == tmp_path / "b.gguf"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-fa", "off"], 1, "-fa off: attention is always fused here"),
        (["--mlock", "--no-mmap"], 1, "choose one of -lm, --mlock, --no-mmap"),
        (["-ngl", "some"], 1, "-ngl some is neither a number nor auto nor all"),
        (["-l", "12"], 1, "'12' is not ID+X or ID-X"),
        (["--temp", "nan"], 1, "--temp must be a number"),
        (["-m", "a.gguf", "b.gguf"], 1, "two models are named"),
        (["-f", "x.txt"], 1, "given twice"),
        (["-sysf", "no-such-file"], 1, "no-such-file cannot be read"),
    ],
)
def test_what_cannot_be_met_is_refused(
    arguments: list[str], code: int, said: str, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [(["--mlock"], "mlock"), (["--no-mmap"], "none"), (["-lm", "mmap+mlock"], "mmap+mlock"), (["--mlock", "-lm", "mlock"], "mlock")],
)
def test_load_modes(arguments: list[str], mode: str, engine: type[FakeEngine]) -> None:
    assert run(*arguments) == 0
    assert engine.opened["load_mode"] == mode


@pytest.mark.parametrize(("layers", "times"), [("99", 1), ("all", 1), ("-1", 1), ("0", 0), ("auto", 0)])
def test_layers_for_a_gpu_are_answered_once(layers: str, times: int, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-ngl", layers) == 0
    assert capsys.readouterr().err.count("no CUDA device") == times


def test_placement_arrives(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    line = "-ngl 20 -ot ffn_.*_exps=CPU -ot blk.0.=CUDA1 -ncmoe 4 -ncffn 2 -nkvo -dev CUDA1,CUDA0 -ts 3,1 -sm none -mg 1 --vram-budget 6GiB"
    line += " --ram-budget 16G -fit off -fitt 512,100 -fitc 8192"
    assert run(*line.split()) == 0
    assert engine.opened["placement"] == Pins(
        n_gpu_layers=20,
        overrides=(("ffn_.*_exps", "CPU"), ("blk.0.", "CUDA1")),
        n_cpu_moe=4,
        n_cpu_ffn=2,
        kv_offload=False,
        split=(3.0, 1.0),
        devices=("CUDA1", "CUDA0"),
        main_gpu=1,
        split_mode="none",
        vram_budget=(6 << 30,),
        ram_budget=16 << 30,
        fit=False,
        fit_target=(512 << 20, 100 << 20),
        fit_ctx=8192,
    )
    for name, value in {
        "N_GPU_LAYERS": "7",
        "CPU_MOE": "1",
        "KV_OFFLOAD": "0",
        "FIT_TARGET": "99",
        "OVERRIDE_TENSOR": "a=CPU,b=CPU",
    }.items():
        monkeypatch.setenv(f"LLAMA_ARG_{name}", value)
    assert run("-fit", "on") == 0
    assert engine.opened["placement"] == Pins(
        n_gpu_layers=7, overrides=(("a", "CPU"), ("b", "CPU")), n_cpu_moe=1 << 20, kv_offload=False, fit_target=(99 << 20,)
    )


@pytest.mark.parametrize(
    "line", ["-ngl x", "-ot a", "-ts x", "-sm row", "--vram-budget 6", "-fit so", "-cmoe -ncmoe 2", "-dev GPU7", "-dev CUDA0"]
)
def test_wrong_placement_is_one_sentence(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *line.split()])
    err = capsys.readouterr().err.removeprefix("using the embedded model; name a GGUF file to use another\n")
    assert stopped.value.code == 1
    assert err.startswith("error: -")
    assert err.count("\n") == 1
