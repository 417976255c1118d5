"""Samplers on distributions worked out by hand, and what the whole chain promises."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggrun.engine.candidates import Candidates
from ggrun.engine.sampling import DEFAULT_SAMPLERS, SampledToken, Sampler, Sampling, sampler_names
from ggrun.errors import GgrunError
from ggrun.text import load_tokenizer
from tests.unit.text_vocabularies import CONTROL, gpt2

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
P = [0.5, 0.2, 0.15, 0.1, 0.05]


def log(probabilities: list[float]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def drawn(
    logits: NDArray[np.float32], n: int = 4000, history: tuple[int, ...] = (), tokenizer: Any = None, **settings: Any
) -> dict[int, float]:
    """Token -> share of n draws with the same logits and history."""
    sampler = Sampler(Sampling(**({"seed": 7} | OFF | settings)), len(logits), tokenizer)
    for token in history:
        sampler.accept(token)
    counts = Counter(sampler.sample(logits).id for _ in range(n))
    return {token: count / n for token, count in counts.items()}


def assert_shares(found: dict[int, float], wanted: dict[int, float]) -> None:
    assert set(found) == set(wanted)
    total = sum(wanted.values())
    for token, weight in wanted.items():
        p = weight / total
        assert abs(found[token] - p) < 5 * math.sqrt(p * (1 - p) / 4000) + 1e-9, (token, found[token], p)


def test_with_everything_off_tokens_come_by_their_probability() -> None:
    assert_shares(drawn(log(P)), dict(enumerate(P)))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_k": -1}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.69}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"top_p": 0.0}, [0]),
        ({"min_p": 0.25}, [0, 1, 2]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),  # of what top_k left, 0.5 + 0.2 are 0.82
        ({"top_k": 3, "top_p": 0.8, "samplers": "top_p;top_k"}, [0, 1, 2]),
        ({"top_n_sigma": 1.0}, [0]),  # spread of the logits 0.762: from -0.693 down to -1.455, which 0.2 does not reach
        ({"top_n_sigma": 1.7}, [0, 1, 2]),
        ({"top_n_sigma": 0.0}, [0, 1, 2, 3, 4]),
        # entropy 1.333; surprises 0.693, 1.609, 1.897, 2.303, 2.996: nearest first 1, 2, 0, 3, 4
        ({"typical_p": 0.19}, [1]),
        ({"typical_p": 0.3}, [1, 2]),
        ({"typical_p": 0.4}, [0, 1, 2]),
    ],
)
def test_what_each_step_keeps(settings: dict[str, Any], kept: list[int]) -> None:
    assert_shares(drawn(log(P), **settings), {token: P[token] for token in kept})


def test_temperature() -> None:
    assert_shares(drawn(log(P), temperature=0.5), {token: p**2 for token, p in enumerate(P)})
    assert_shares(drawn(log(P), temperature=2.0), {token: p**0.5 for token, p in enumerate(P)})


def test_temperature_follows_entropy() -> None:
    entropy = -sum(p * math.log(p) for p in P) / math.log(5)
    temperature = 0.5 + 1.0 * entropy**2
    found = drawn(log(P), temperature=1.0, dynatemp_range=0.5, dynatemp_exponent=2.0)
    assert_shares(found, {token: p ** (1 / temperature) for token, p in enumerate(P)})
    assert drawn(log([1.0, 0.0, 0.0]), n=5, dynatemp_range=2.0) == {0: 1.0}


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_no_temperature_is_greedy_and_of_equals_the_lower_id(temperature: float) -> None:
    logits = np.array([0, 3, 1, 3, 3], np.float32)
    assert drawn(logits, n=20, temperature=temperature) == {1: 1.0}
    assert drawn(logits, n=20, temperature=temperature, top_k=2, samplers="top_k") == {1: 1.0}
    assert drawn(logits, n=20, temperature=temperature, mirostat=2) == {1: 1.0}
    assert drawn(logits, n=20, temperature=temperature, logit_bias=((1, -1.0),)) == {3: 1.0}


def test_ties_are_cut_by_id_wherever_they_stand() -> None:
    logits = np.zeros(5000, np.float32)
    assert set(drawn(logits, n=200, top_k=3)) <= {0, 1, 2}
    logits[4000] = 1
    logits[17] = -0.0
    found = drawn(logits, n=400, top_k=2)
    assert set(found) == {4000, 0}


@pytest.mark.parametrize("k", [1, 5, 40, 63, 200, 4999])
def test_the_largest_of_many(k: int) -> None:
    logits = np.random.default_rng(k).choice(np.arange(-200, 200).astype(np.float32), 5000)
    candidates = Candidates(logits)
    candidates.top(k)
    order = np.sort(np.lexsort((np.arange(5000), -logits))[:k])
    assert candidates.ids is not None
    assert candidates.ids.tolist() == order.tolist()
    assert candidates.logits.tolist() == logits[order].tolist()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_needs_no_top_k(top_p: float) -> None:
    for spread in (0.5, 4.0):
        logits = np.random.default_rng(1).normal(scale=spread, size=20_000).astype(np.float32)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum()
        order = np.argsort(-p)
        kept = set(order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1].tolist())
        assert set(drawn(logits, n=300, top_p=top_p)) <= kept


def test_repeat_penalty_divides_or_multiplies() -> None:
    logits = np.array([2.0, 2.0, -1.0, -1.0], np.float32)
    found = drawn(logits, history=(0, 0, 2), repeat_penalty=2.0)
    assert_shares(found, {0: math.exp(1), 1: math.exp(2), 2: math.exp(-2), 3: math.exp(-1)})


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.zeros(3, np.float32)
    found = drawn(logits, history=(0, 0, 0, 1), presence_penalty=0.5, frequency_penalty=0.25)
    assert_shares(found, {0: math.exp(-1.25), 1: math.exp(-0.75), 2: 1.0})


@pytest.mark.parametrize(("last_n", "penalized"), [(0, []), (2, [1, 2]), (3, [0, 1, 2]), (-1, [0, 1, 2, 3])])
def test_penalties_look_back_so_far(last_n: int, penalized: list[int]) -> None:
    found = drawn(np.zeros(5, np.float32), history=(3, 0, 1, 2), presence_penalty=20.0, repeat_last_n=last_n)
    assert set(found) == set(range(5)) - set(penalized)


def test_penalties_spare_the_forbidden() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    assert set(drawn(logits, n=50, history=(0, 1), repeat_penalty=1.5, presence_penalty=1.0)) == {0, 2}


def test_xtc_removes_all_but_the_last_of_the_likely() -> None:
    likely = [0.4, 0.3, 0.2, 0.06, 0.04]
    always = {"xtc_probability": 1.0, "xtc_threshold": 0.1}
    assert_shares(drawn(log(likely), **always), {2: 0.2, 3: 0.06, 4: 0.04})
    assert_shares(drawn(log([0.9, 0.06, 0.04]), **always), {0: 0.9, 1: 0.06, 2: 0.04})  # only one is likely
    assert_shares(drawn(log(likely), xtc_probability=1.0, xtc_threshold=0.6), dict(enumerate(likely)))
    half = drawn(log(likely), xtc_probability=0.5, xtc_threshold=0.1)
    share = 0.5 * 0.4  # half of the draws are as they were
    assert abs(half[0] - share) < 5 * math.sqrt(share * (1 - share) / 4000)


def test_dry_punishes_what_would_prolong_a_repetition() -> None:
    logits = np.zeros(8, np.float32)
    # ... 1 2 3 5 ... 1 2 3 | 5 would repeat four tokens, 6 three (2 3 6 came too)
    history = (1, 2, 3, 5, 2, 3, 6, 0, 1, 2, 3)
    found = drawn(logits, history=history, dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2)
    assert_shares(found, dict.fromkeys((0, 1, 2, 3, 4, 7), 1.0) | {5: math.exp(-2), 6: math.exp(-1)})
    assert_shares(drawn(logits, history=history, dry_multiplier=1.0, dry_allowed_length=4), dict.fromkeys(range(8), 1.0))
    short = drawn(logits, history=history, dry_multiplier=1.0, dry_base=2.0, dry_penalty_last_n=8)
    assert_shares(short, dict.fromkeys((0, 1, 2, 3, 4, 5, 7), 1.0) | {6: math.exp(-1)})


def test_dry_stops_at_sequence_breakers() -> None:
    tokenizer = load_tokenizer(gpt2(["a b", "c :"]))
    a, b, d, colon = (tokenizer.encode(letter)[0] for letter in "abd:")
    logits = np.full(tokenizer.n_vocab, -20.0, np.float32)
    logits[[a, d, colon]] = 0.0
    settings: dict[str, Any] = {"dry_multiplier": 20.0, "tokenizer": tokenizer}
    assert set(drawn(logits, history=(a, b, d, a, b), **settings)) == {a, colon}  # d would prolong "a b"
    broken = drawn(logits, history=(a, b, d, a, colon, b), **settings)
    assert_shares(broken, dict.fromkeys((a, d, colon), 1.0))
    joined = tokenizer.encode("c:", add_special=False)  # a token that contains the breaker
    assert_shares(drawn(logits, history=(a, b, d, a, *joined, b), **settings), dict.fromkeys((a, d, colon), 1.0))
    assert colon in drawn(logits, history=(a, b, colon, d, d, a, b), **settings)  # breakers themselves are never punished


def test_dry_breakers_of_several_tokens() -> None:
    tokenizer = load_tokenizer(gpt2())
    a, b, d, hash_ = (tokenizer.encode(letter)[0] for letter in "abd#")
    logits = np.full(tokenizer.n_vocab, -20.0, np.float32)
    logits[[a, d]] = 0.0
    settings: dict[str, Any] = {"dry_multiplier": 20.0, "tokenizer": tokenizer, "dry_sequence_breakers": ("##",)}
    repeated = (hash_, a, b, d, hash_)
    assert set(drawn(logits, history=(*repeated, a, b), **settings)) == {a}
    assert set(drawn(logits, history=(a, b, d, a, hash_, hash_, b), **settings)) == {a, d}


def test_dry_on_a_long_repetition_is_bounded() -> None:
    found = drawn(np.zeros(4, np.float32), n=20, history=(0, 1) * 3000, dry_multiplier=0.8)
    assert 0 not in found


def test_mirostat_2_keeps_to_its_surprise() -> None:
    sampler = Sampler(Sampling(seed=3, temperature=1.0, mirostat=2, mirostat_tau=1.0, mirostat_eta=0.5), 5)
    assert sampler.mu == 2.0  # keeps what surprises by at most 2 bits: p >= 0.25
    token = sampler.sample(log([0.5, 0.3, 0.1, 0.06, 0.04])).id
    assert token in (0, 1)
    surprise = -math.log2([0.5, 0.3][token] / 0.8)
    assert sampler.mu == pytest.approx(2.0 - 0.5 * (surprise - 1.0), abs=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_reaches_its_target(version: int) -> None:
    logits = -1.1 * np.log(np.arange(1, 5001)).astype(np.float32)  # a Zipf distribution, as text has
    sampler = Sampler(Sampling(seed=5, temperature=1.0, mirostat=version, mirostat_tau=4.0, mirostat_eta=0.05), 5000)
    surprises = [-sampler.sample(logits).logprob / math.log(2) for _ in range(1500)]
    kept = np.mean(surprises[500:])
    assert 3.0 < kept < 6.5  # measured against the whole distribution, a little above the surprise among those kept
    assert len(set(np.round(surprises, 6))) > 20


def test_mirostat_with_a_single_candidate() -> None:
    for version in (1, 2):
        assert drawn(log([1.0, 0.0]), n=3, mirostat=version) == {0: 1.0}


def test_logit_bias_adds_and_forbids() -> None:
    found = drawn(log(P), logit_bias=((1, math.log(2)), (0, -math.inf), (1, math.log(2))))
    assert_shares(found, {1: 0.8, 2: 0.15, 3: 0.1, 4: 0.05})
    with pytest.raises(GgrunError, match=r"--logit-bias names token 5.*5 tokens"):
        drawn(log(P), logit_bias=((5, 1.0),))
    with pytest.raises(GgrunError, match="no token is left"):
        drawn(log(P), logit_bias=tuple((token, -math.inf) for token in range(5)))


def test_ignore_eos_forbids_every_end() -> None:
    tokenizer = load_tokenizer(gpt2([], {"<|im_end|>": CONTROL, "</s>": CONTROL}))
    logits = np.zeros(258, np.float32)
    logits[256:] = 30.0
    assert set(drawn(logits, n=200, tokenizer=tokenizer)) == {256, 257}
    assert not {256, 257} & set(drawn(logits, n=200, tokenizer=tokenizer, ignore_eos=True))
    assert Sampler(Sampling(ignore_eos=True), 100, tokenizer).sample(logits[:100]).id < 100


def test_logprob_is_the_models_own() -> None:
    sampler = Sampler(Sampling(seed=1, temperature=0.2, top_k=2, logit_bias=((3, 50.0),)), 5)
    assert sampler.sample(log(P)) == SampledToken(3, pytest.approx(math.log(0.1), abs=1e-5))


def test_the_logits_stay_as_they_are() -> None:
    logits = log(P)
    before = logits.copy()
    drawn(logits, n=3, history=(0,), repeat_penalty=2.0, temperature=0.3, logit_bias=((1, 1.0),))
    assert np.array_equal(logits, before)
    logits.flags.writeable = False
    drawn(logits, n=3, history=(0,), repeat_penalty=2.0)


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)

    def run(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed, repeat_penalty=1.1, xtc_probability=0.3, xtc_threshold=0.01), 1000)
        ids = []
        for row in logits:
            ids.append(sampler.sample(row).id)
            sampler.accept(ids[-1])
        return ids

    assert run(42) == run(42)
    assert run(42) != run(43)
    assert Sampler(Sampling(seed=42), 10).seed == 42
    assert Sampler(Sampling(), 10).seed != Sampler(Sampling(), 10).seed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    logits = np.array([1.0, bad, 0.5], np.float32)
    found = drawn(logits, n=100)
    assert set(found) == ({1} if bad == math.inf else {0, 2})
    if bad != math.inf:
        with pytest.raises(GgrunError, match="usable logit"):
            drawn(np.full(3, bad, np.float32), n=1)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("top_k;min_p", ("top_k", "min_p")),
        ("top-k; nucleus ,TEMP", ("top_k", "top_p", "temperature")),
        ("typical", ("typ_p",)),
        ("edskypmxt", ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")),
        ("kmt", ("top_k", "min_p", "temperature")),
        ("", ()),
        (["typ_p", "temp"], ("typ_p", "temperature")),
    ],
)
def test_names_of_samplers(given: Any, names: tuple[str, ...]) -> None:
    assert sampler_names(given) == names
    assert Sampling(samplers=given).samplers == names


def test_defaults_are_llama_cpps() -> None:
    assert DEFAULT_SAMPLERS == ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
    s = Sampling()
    assert (s.seed, s.temperature, s.top_k, s.top_p, s.min_p, s.repeat_last_n) == (-1, 0.8, 40, 0.95, 0.05, 64)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"temperature": math.nan}, "--temp"),
        ({"temperature": "hot"}, "--temp"),
        ({"top_k": 1.5}, "--top-k"),
        ({"top_k": True}, "--top-k"),
        ({"top_p": 1.1}, "--top-p"),
        ({"top_p": -0.1}, "--top-p"),
        ({"min_p": 2}, "--min-p"),
        ({"typical_p": -1}, "--typical"),
        ({"repeat_penalty": 0}, "--repeat-penalty"),
        ({"repeat_last_n": -2}, "--repeat-last-n"),
        ({"presence_penalty": math.inf}, "--presence-penalty"),
        ({"frequency_penalty": -1e308}, "--frequency-penalty"),
        ({"logit_bias": ((1, 1e308),)}, "--logit-bias"),
        ({"xtc_probability": 2}, "--xtc-probability"),
        ({"dry_allowed_length": 0}, "--dry-allowed-length"),
        ({"dry_multiplier": -1}, "--dry-multiplier"),
        ({"mirostat": 3}, "--mirostat"),
        ({"seed": -2}, "--seed"),
        ({"samplers": ("top_k", "nonsense")}, "--samplers"),
        ({"samplers": "top_z"}, "--samplers"),
        ({"logit_bias": ((-1, 1.0),)}, "--logit-bias"),
        ({"logit_bias": ((1, math.inf),)}, "--logit-bias"),
        ({"logit_bias": (5,)}, "--logit-bias"),
        ({"dry_sequence_breakers": "abc"}, "--dry-sequence-breaker"),
    ],
)
def test_values_out_of_range_are_refused_by_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(GgrunError, match=flag):
        Sampling(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 1},
        {"top_k": 7, "typical_p": 0.9, "xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"temperature": 0.0},
        {"temperature": 0.0, "samplers": "temperature"},
        {"temperature": -1.0, "mirostat": 2},
        {"dynatemp_range": 0.5},
    ],
)
def test_the_highest_logits_alone_give_the_same_tokens(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    sampling = Sampling(**({"seed": 5} | settings))
    whole, few, untold = Sampler(sampling, 5000, n_top=6), Sampler(sampling, 5000, n_top=6), Sampler(sampling, 5000, n_top=-1)
    k = few.n_highest
    assert max(6, untold.n_highest) == k <= 40
    for _ in range(50):
        logits = np.round(rng.standard_normal(5000) * 3, 1).astype(np.float32)  # rounded: many are equal
        ids = np.argsort(-logits, kind="stable")[:k].astype(np.int32)
        total = math.log(np.exp(logits.astype(np.float64)).sum())
        a, b = whole.sample(logits), few.sample_highest(ids, logits[ids], total)
        assert a.id == b.id
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert [id_ for id_, _ in a.top] == [id_ for id_, _ in b.top] == ids[:6].tolist()
        assert [p for _, p in a.top] == pytest.approx([p for _, p in b.top], abs=1e-5)
        assert dict(a.top).get(a.id, a.logprob) == a.logprob
        assert untold.sample(logits) == SampledToken(a.id, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"repeat_penalty": 1.1},
        {"dry_multiplier": 1.0},
        {"top_n_sigma": 1.0},
        {"top_k": 0},
        {"samplers": "min_p;top_k"},
        {"mirostat": 1},
        {"logit_bias": ((3, 1.0),)},
    ],
)
def test_some_settings_need_every_logit(settings: dict[str, Any]) -> None:
    assert Sampler(Sampling(**settings), 5000).n_highest == 0
