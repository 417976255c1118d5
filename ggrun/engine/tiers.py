"""Where blocks are kept beside the pool: host memory and a folder, as the options say; and what keys and values of a model belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from ggrun import __version__
from ggrun.engine.disk_blocks import DiskBlocks
from ggrun.engine.disk_thread import DiskThread, staging_bytes
from ggrun.engine.host_blocks import HostBlocks
from ggrun.engine.kv_file import Origin
from ggrun.errors import GgrunError
from ggrun.gguf import GgufFile
from ggrun.plan.device import Shape
from ggrun.plan.ledger import Line, human
from ggrun.plan.planner import Plan
from ggrun.program.program import Program
from ggrun.runtime.kept import cache_base
from ggrun.runtime.kv_form import KvForm

MIB = 1 << 20
MOST_CHOSEN = 8192  # MiB of host memory that are taken unasked, when a quarter of what is free is not less
MOST_POOLS = 64  # times the pool's own size, for small models
CHOOSE = -1  # Options.cram_mib


def default_disk_cache() -> Path:
    """Where `ggrun serve` keeps prompts unless it is told otherwise."""
    return cache_base() / "prefixes"


def form_of(program: Program, shape: Shape) -> KvForm:
    """The neutral form of a plan's blocks."""
    return KvForm(program.states, shape.type_k, shape.type_v)


def origin_of(file: GgufFile, form: KvForm) -> Origin:
    """What a file of blocks says of where they come from."""
    types = f"keys {form.type_k}, values {form.type_v}"
    return Origin(file.fingerprint(), blake2b(form.signature, digest_size=16).hexdigest(), types, form.n_bytes)


def cache_lines(plan: Plan, cram_mib: int, on_disk: bool) -> tuple[list[Line], str]:
    """The ledger's lines for blocks beside the pool, and what is to be said of them, if anything.

    cram_mib: CHOOSE takes a quarter of what the plan leaves free, MOST_CHOSEN and MOST_POOLS at most; a number is the most that is taken.
    """
    block_bytes = form_of(plan.program, plan.shape).n_bytes
    cpu = next((room.device for room in plan.rooms if room.device == "CPU"), plan.ledger.lines[0].device)
    staging = staging_bytes(block_bytes) if on_disk else 0
    free = max(0, plan.available_bytes - plan.ledger.total(cpu) - staging)
    chosen = min(MOST_CHOSEN * MIB, free // 4, MOST_POOLS * plan.shape.n_kv_blocks * block_bytes)
    wanted = chosen if cram_mib == CHOOSE else cram_mib * MIB
    n_bytes = min(wanted, free // 2) // block_bytes * block_bytes
    note = f"-cram {cram_mib}: {human(n_bytes)} is taken, half of what the plan leaves free" if wanted > free // 2 else ""
    lines = [
        Line(cpu, "cache", "KV blocks that left the pool (-cram)", n_bytes),
        Line(cpu, "staging", "KV blocks on their way to and from the disk", staging),
    ]
    return [line for line in lines if line.n_bytes], note


@dataclass
class Tiers:
    """host, disk: None where there is none. notes: what the person should know of them."""

    host: HostBlocks | None = None
    disk: DiskThread | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, file: GgufFile, plan: Plan, disk_cache: Path | None, disk_cache_mib: int) -> Tiers:
        """As the plan's ledger lists them. A folder that cannot be used is a note; GgrunError when the memory cannot be had."""
        tiers, form = cls(), form_of(plan.program, plan.shape)
        n_bytes = plan.ledger.total(purpose="cache")
        if n_bytes:
            tiers.host = HostBlocks(n_bytes, form.n_bytes)
        if disk_cache is not None and disk_cache_mib:
            try:
                origin = origin_of(file, form)
                disk = DiskBlocks(disk_cache, origin, _folder(origin, plan), disk_cache_mib * MIB)
                tiers.disk = DiskThread(disk, form.n_bytes)
                tiers.disk.notes = tiers.notes
            except GgrunError as error:
                tiers.notes.append(f"prompts are not kept for the next start: {error}")
        return tiers

    @property
    def allocated_bytes(self) -> int:
        """What the ledger lists as cache."""
        return self.host.n_bytes if self.host else 0


def _folder(origin: Origin, plan: Plan) -> str:
    """Of blocks that are, to the bit, what this plan would compute: another version's, or another device's, may not be."""
    where: Mapping[str, str] = plan.where or {unit: segment.device for segment in plan.segments for unit in segment.units}
    told = f"{__version__} {origin.model} {origin.form} {sorted(where.items())}"
    return blake2b(told.encode(), digest_size=16).hexdigest()
