"""What is measured: groups of cases on one file, and the settings of the rival they are measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

FLASH = {"auto": -1, "off": 0}  # llama.cpp's enum llama_flash_attn_type; on the CPU auto means on
N_WARM = 32  # tokens of the run before the first that counts, behind a context


@dataclass(frozen=True, slots=True)
class Setting:
    """Of llama.cpp: weights repacked at load or read from the mapped file; flash attention."""

    repack: bool
    flash: str

    def __str__(self) -> str:
        return f"repack {'on' if self.repack else 'off'}, flash {self.flash}"


DEFAULT = Setting(True, "auto")
ALL = (DEFAULT, Setting(False, "auto"), Setting(True, "off"), Setting(False, "off"))
AUTO = ALL[:2]


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt of n tokens, or n steps of one token for each of n_seqs sequences, behind `depth` tokens of context."""

    kind: str  # "prompt" | "tokens"
    n: int
    depth: int = 0
    n_seqs: int = 1
    busy: bool = False  # beside a process that computes without end

    @property
    def n_tokens(self) -> int:
        return self.n * self.n_seqs

    def __str__(self) -> str:
        name = f"{'pp' if self.kind == 'prompt' else 'tg'}{self.n}"
        several = f" x {self.n_seqs} sequences" if self.n_seqs > 1 else ""
        return name + several + (f" @ d{self.depth}" if self.depth else "") + (" beside a busy process" if self.busy else "")


@dataclass(frozen=True, slots=True)
class Group:
    """Tests in the order they run, depths rising. `minutes` is an estimate; `seconds` bounds the rounds of a case."""

    name: str
    file: str
    minutes: float
    cases: tuple[Case, ...] = ()
    settings: tuple[Setting, ...] = ALL
    threads: int = 2
    build: str = "native"
    seconds: float = 40.0

    @property
    def n_ctx(self) -> int:
        """Tokens a context must hold, all sequences together."""
        return max(case.n_seqs * -(-(case.depth + case.n) // 256) * 256 for case in self.cases)

    @property
    def deepest(self) -> int:
        return max(case.depth for case in self.cases)


def at_depth(depth: int, *prompts: int, tokens: int) -> tuple[Case, ...]:
    return (*(Case("prompt", n, depth) for n in prompts), Case("tokens", tokens, depth))


SHORT = at_depth(0, 512, tokens=32)
DEPTHS = tuple(case for depth in (0, 4096, 16384) for case in at_depth(depth, 512, 2048, tokens=128))
SEQUENCES = tuple(Case("tokens", 32, n_seqs=n) for n in (1, 2, 4, 8, 16))
BUSY = tuple(Case("tokens", 64, busy=busy) for busy in (False, True))
GROUPS = (
    Group("depth", "1B Q4_K_M", 18, DEPTHS),
    Group("sequences", "1B Q4_K_M", 3, SEQUENCES, seconds=25),
    Group("busy", "1B Q4_K_M", 1, BUSY, AUTO),
    Group("start", "1B Q4_K_M", 2),
    Group("memory", "1B Q4_K_M", 0.5),
    Group("memory, 150k tokens", "0.6B Q8_0", 0.5),
    Group("Q8_0", "1B Q8_0", 1.5, SHORT),
    Group("Q6_K", "1B Q6_K", 1.5, SHORT),
    Group("Qwen3", "0.6B Q8_0", 1.5, SHORT),
    Group("1 thread", "1B Q4_K_M", 2, SHORT, AUTO, threads=1),
    Group("avx2", "1B Q4_K_M", 2.5, at_depth(0, 512, tokens=128), AUTO, build="avx2"),
    Group("8B", "8B Q4_K_M", 8, at_depth(0, 512, tokens=32) + at_depth(4096, 512, tokens=32), AUTO, seconds=30),
)  # fmt: skip


def shortened(group: Group) -> Group | None:
    """The group as --quick runs it: the settings with flash attention, no prompt of 2048, no depth beyond 4096, a third of the time."""
    if group.name in ("Qwen3", "1 thread", "8B"):
        return None
    cases = tuple(t for t in group.cases if t.depth <= 4096 and t.n <= 512 and t.n_seqs in (1, 8))
    return replace(group, cases=cases, settings=AUTO, seconds=group.seconds / 3, minutes=round(group.minutes / 3, 1))
