"""What is measured: groups of cases on one file, and the settings of the rival they are measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggrun.bench.matrix import Case

FLASH = {"auto": -1, "off": 0}  # llama.cpp's enum llama_flash_attn_type; on the CPU auto means on
BESIDE = " beside a busy process"


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
class Group:
    """Cases in the order they run, depths rising. `minutes` is an estimate; `seconds` bounds the rounds of a case.

    busy: measure them a second time beside a process that computes without end.
    """

    name: str
    file: str
    minutes: float
    cases: tuple[Case, ...] = ()
    settings: tuple[Setting, ...] = ALL
    threads: int = 2
    build: str = "native"
    seconds: float = 30.0
    busy: bool = False

    @property
    def n_ctx(self) -> int:
        """Tokens of context that each sequence needs."""
        return max(-(-case.n_ctx // 256) * 256 for case in self.cases)

    @property
    def n_parallel(self) -> int:
        return max(case.n_parallel for case in self.cases)

    @property
    def deepest(self) -> int:
        return max(case.n_depth for case in self.cases)

    @property
    def tests(self) -> tuple[tuple[str, Case, bool], ...]:
        """(name, case, whether beside a busy process) of all that is measured."""
        quiet = tuple((case.name, case, False) for case in self.cases)
        return quiet + tuple((case.name + BESIDE, case, True) for case in self.cases if self.busy)


def at_depth(depth: int, *prompts: int, tokens: int) -> tuple[Case, ...]:
    return (*(Case(n, 0, depth) for n in prompts), Case(0, tokens, depth))


SHORT = at_depth(0, 512, tokens=32)
DEPTHS = tuple(case for depth in (0, 4096, 16384) for case in at_depth(depth, 512, 2048, tokens=128))
SEQUENCES = tuple(Case(0, 32, n_parallel=n) for n in (1, 2, 4, 8, 16))
GROUPS = (
    Group("depth", "1B Q4_K_M", 20, DEPTHS),
    Group("sequences", "1B Q4_K_M", 3, SEQUENCES, seconds=20),
    Group("busy", "1B Q4_K_M", 1, (Case(0, 64),), AUTO, busy=True),
    Group("start", "1B Q4_K_M", 1),
    Group("memory", "1B Q4_K_M", 0.5),
    Group("memory, 150k tokens", "0.6B Q8_0", 0.5),
    Group("Q8_0", "1B Q8_0", 1.5, SHORT),
    Group("Q6_K", "1B Q6_K", 1.5, SHORT),
    Group("Qwen3", "0.6B Q8_0", 1.5, SHORT),
    Group("1 thread", "1B Q4_K_M", 2, SHORT, AUTO, threads=1),
    Group("avx2", "1B Q4_K_M", 2.5, at_depth(0, 512, tokens=128), AUTO, build="avx2"),
    Group("8B", "8B Q4_K_M", 8, at_depth(0, 512, tokens=32) + at_depth(4096, 512, tokens=32), AUTO),
)  # fmt: skip


def shortened(group: Group) -> Group | None:
    """The group as --quick runs it: the settings with flash attention, no prompt of 2048, no depth beyond 4096, a third of the time."""
    if group.name in ("Qwen3", "1 thread", "8B"):
        return None
    cases = tuple(case for case in group.cases if case.n_depth <= 4096 and case.n_prompt <= 512 and case.n_parallel in (1, 8))
    return replace(group, cases=cases, settings=AUTO, seconds=group.seconds / 3, minutes=round(group.minutes / 3, 1))
