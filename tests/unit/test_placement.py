"""Which unit runs where: layers as llama.cpp counts them, parts of layers, patterns, several GPUs, and sentences for what means nothing."""

import pytest

from ggrun.errors import GgrunError
from ggrun.plan.pins import ALL, Pins, flags_of, read_pins, size
from ggrun.plan.placement import Choice, override_notes, place, ranges, summary
from tests.plan_machines import GIB, MIB, machine, mixture, model, planned, task

LLAMA = model("llama-3.1-8b")
MIXTURE = mixture()


def where(
    n: int, gpus: int = 1, of: object = LLAMA, embed: bool = False, shares: tuple[float, ...] = (), n_cpu_moe: int = 0, **flags: object
):
    choice = Choice(n, n_cpu_moe, embed, tuple(f"CUDA{i}" for i in range(gpus)), shares)
    return place(of[1], read_pins(**flags), choice)  # type: ignore[index,arg-type]


def on(placed: dict[str, str], device: str = "CUDA0") -> list[str]:
    return [unit for unit, there in placed.items() if there == device]


def test_twenty_of_32_is_the_head_and_layers_13_to_31() -> None:
    placed = where(20)
    assert on(placed) == [f"layer.{i}.{part}" for i in range(13, 32) for part in ("attn", "ffn")] + ["head"]
    assert summary(LLAMA[1], placed) == "the head, layers 13-31 on CUDA0; the rest on the CPU"


@pytest.mark.parametrize(("n", "units"), [(0, 0), (1, 1), (2, 3), (32, 63), (33, 65), (ALL, 65)])
def test_counts(n: int, units: int) -> None:
    assert len(on(where(n))) == units
    assert "embed" not in on(where(n))


def test_the_embedding_follows_when_told() -> None:
    assert on(where(33, embed=True))[0] == "embed"
    assert "CPU" not in where(33, embed=True).values()


def test_without_gpus_everything_is_on_the_cpu() -> None:
    assert set(place(LLAMA[1], Pins(), Choice(33)).values()) == {"CPU"}


def test_shares_deal_layers_as_llama_cpp_does() -> None:
    placed = where(33, 2, shares=(3.0, 1.0))
    assert [i for i in range(32) if placed[f"layer.{i}.attn"] == "CUDA0"] == list(range(25))  # 24/33 < 0.75 <= 25/33
    assert placed["head"] == "CUDA1"
    assert not on(where(33, 2, shares=(0.0, 1.0)))


def test_bytes_deal_layers_when_no_shares_are_named() -> None:
    plan = planned(LLAMA, machine((6, 12), 16), 4096)
    weights = [plan.ledger.total(f"CUDA{i}", "weights") for i in range(2)]
    assert weights[0] == 0 or 0.3 < weights[0] / weights[1] < 0.6


def test_parts_of_layers_stay_on_the_cpu() -> None:
    units = where(ALL, of=MIXTURE, n_cpu_moe=3)
    assert on(units, "CPU") == ["embed", *(f"layer.{i}.experts" for i in range(3))]
    assert on(where(ALL, n_cpu_ffn=2), "CPU") == ["embed", "layer.0.ffn", "layer.1.ffn"]
    assert on(where(ALL, kv_offload=False), "CPU") == ["embed", *(f"layer.{i}.attn" for i in range(32))]
    assert summary(MIXTURE[1], units) == "the head, layers 3-7, attn of layers 0-2 on CUDA0; the rest on the CPU"


def test_patterns_move_units_and_win() -> None:
    placed = where(33, override_tensor=[r"blk\.(3|4)\.ffn_down=CPU"])
    assert on(placed, "CPU") == ["embed", "layer.3.ffn", "layer.4.ffn"]
    placed = where(0, override_tensor=[r"^output\.weight=CUDA0,token_embd=cpu"])
    assert on(placed) == ["head"]
    assert "layer.0.attn" in on(where(33, override_tensor=[r"blk\.0\.attn=CUDA0"], kv_offload=False))
    assert on(where(33, override_tensor=["rope_freqs=CPU"]), "CPU") == ["embed"]  # shared by all layers, so of none


def test_the_first_pattern_that_matches_a_tensor_counts() -> None:
    placed = where(33, 2, override_tensor=[r"blk\.1\.=CUDA1", r"blk\..*=CPU"])
    assert on(placed, "CUDA1")[:2] == ["layer.1.attn", "layer.1.ffn"]
    with pytest.raises(GgrunError, match=r"-ot puts blk.0.ffn_gate.weight on CPU and blk.0.ffn_up.weight on CUDA0, .* layer.0.ffn"):
        where(33, override_tensor=["ffn_gate=CPU", "ffn_up=CUDA0"])


def test_notes_of_patterns() -> None:
    notes = override_notes(LLAMA[1], read_pins(override_tensor=[r"blk\.0\.ffn_up=CPU", "nothing=CPU", r"blk\.2\.=CPU"]))
    assert len(notes) == 2
    assert "blk.0.ffn_norm.weight, blk.0.ffn_gate.weight and 1 more come along to CPU" in notes[0]
    assert notes[1] == "-ot nothing=CPU: no tensor of this model has such a name"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"n_gpu_layers": "some"}, "-ngl some is neither a number nor auto nor all"),
        ({"override_tensor": ["ffn"]}, "is not PATTERN=DEVICE"),
        ({"override_tensor": ["ffn=TPU0"]}, "there is no device called TPU0"),
        ({"override_tensor": ["(=CPU"]}, "is not a regular expression"),
        ({"cpu_moe": True, "n_cpu_moe": 3}, "-cmoe and -ncmoe 3 say different things"),
        ({"n_cpu_moe": -1}, "-ncmoe -1 is out of range"),
        ({"n_cpu_ffn": -1}, "-ncffn -1 is out of range"),
        ({"tensor_split": "1,x"}, "is not a list of shares"),
        ({"tensor_split": "0,0"}, "one of them is more"),
        ({"tensor_split": "1,-1"}, "shares are 0 or more"),
        ({"tensor_split": "1,nan"}, "shares are 0 or more"),
        ({"split_mode": "row"}, "rows of a matrix are not split over GPUs here; -sm takes layer"),
        ({"split_mode": "column"}, "-sm takes layer"),
        ({"device": "GPU0"}, "there is no device called GPU0"),
        ({"device": "CUDA0,CUDA0"}, "names a device twice"),
        ({"main_gpu": -1}, "-mg -1 is out of range"),
        ({"vram_budget": "6"}, "write it with its unit"),
        ({"vram_budget": "0GiB"}, "is no size"),
        ({"ram_budget": "lots"}, "--ram-budget 'lots' is not a size"),
        ({"fit": "maybe"}, "neither on nor off"),
        ({"fit_target": "1GiB"}, "is not a number of MiB"),
        ({"fit_target": "-1"}, "-fitt -1 is out of range"),
        ({"fit_ctx": -1}, "-fitc -1 is out of range"),
    ],
)
def test_words_that_mean_nothing_are_a_sentence(flags: dict[str, object], said: str) -> None:
    with pytest.raises(GgrunError) as error:
        read_pins(**flags)  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"device": "CUDA1"}, "-dev CUDA1: there is CUDA0"),
        ({"override_tensor": ["ffn=CUDA3"]}, "-ot ffn=CUDA3: there is CUDA0"),
        ({"override_tensor": ["ffn=CUDA0"], "device": "none"}, "left out by -dev"),
        ({"split_mode": "none", "main_gpu": 2}, "-mg 2: there is CUDA0, counted from 0"),
        ({"tensor_split": "1,1"}, "-ts has 2 shares for 1 GPU"),
        ({"vram_budget": "1GiB,2GiB"}, "--vram-budget has 2 sizes for 1 GPU; give one"),
        ({"fit_target": "1,2"}, "-fitt has 2 sizes for 1 GPU; give one"),
    ],
)
def test_devices_that_are_not_there_are_a_sentence(flags: dict[str, object], said: str) -> None:
    with pytest.raises(GgrunError) as error:
        planned(LLAMA, machine(), 4096, **flags)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("6GiB", 6 * GIB), ("6G", 6 * GIB), ("6gb", 6 * GIB), ("1.5 GiB", 3 * GIB // 2), ("512MiB", 512 * MIB), ("100B", 100)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert size("--vram", text) == n_bytes


@pytest.mark.parametrize(
    "words",
    [
        {"n_gpu_layers": "20"},
        {"n_gpu_layers": "all", "kv_offload": False, "cpu_moe": True},
        {"override_tensor": [r"blk\.[0-9]{1,2}\.ffn=CPU,output=CUDA0"], "n_cpu_ffn": 3},
        {"tensor_split": "3,1.5", "device": "CUDA1,CUDA0", "fit": "off"},
        {"device": "none", "fit_target": "512,100", "fit_ctx": 8192, "n_cpu_moe": 0},
        {"vram_budget": "6GiB,512MiB", "ram_budget": "1000000B", "split_mode": "none", "main_gpu": 1},
    ],
)
def test_pins_are_written_as_the_flags_they_came_from(words: dict[str, object]) -> None:
    names = {
        "-ngl": "n_gpu_layers",
        "-ncmoe": "n_cpu_moe",
        "-ncffn": "n_cpu_ffn",
        "-ts": "tensor_split",
        "-dev": "device",
        "-mg": "main_gpu",
    }
    names |= {"-sm": "split_mode", "--vram-budget": "vram_budget", "--ram-budget": "ram_budget", "-fit": "fit", "-fitt": "fit_target"}
    names |= {"-fitc": "fit_ctx"}
    pins = read_pins(**words)  # type: ignore[arg-type]
    flags = flags_of(pins)
    again: dict[str, object] = {}
    while flags:
        flag = flags.pop(0)
        if flag in ("-cmoe", "-nkvo"):
            again |= {"cpu_moe": True} if flag == "-cmoe" else {"kv_offload": False}
        elif flag == "-ot":
            again["override_tensor"] = [*again.get("override_tensor", []), flags.pop(0)]  # type: ignore[misc]
        else:
            value = flags.pop(0)
            again[names[flag]] = int(value) if flag in ("-ncmoe", "-ncffn", "-mg", "-fitc") else value
    assert read_pins(**again) == pins  # type: ignore[arg-type]


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_devices_are_chosen_and_ordered_by_dev_and_sm() -> None:
    places = machine((6, 6, 6))
    assert {room.device for room in planned(LLAMA, places, 4096, device="CUDA2,CUDA0").rooms} == {"CPU", "CUDA0", "CUDA2"}
    plan = planned(LLAMA, places, 4096, n_gpu_layers="20", split_mode="none", main_gpu=1)
    assert {s.device for s in plan.segments} == {"CPU", "CUDA1"}
    assert {s.device for s in planned(LLAMA, places, 4096, device="none").segments} == {"CPU"}
    assert task(LLAMA, places).pins == Pins()
