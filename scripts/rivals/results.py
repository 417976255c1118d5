"""Results as lines of JSON that a later run reads again, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

OURS = "ggrun"


@dataclass(frozen=True, slots=True)
class Result:
    """samples: engine ("ggrun", or a setting of llama.cpp) -> figures in `unit`, in the order they were taken."""

    group: str
    test: str
    file: str
    threads: int
    unit: str
    samples: Mapping[str, list[float]]
    date: str

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.test

    def middle(self, engine: str) -> float:
        return median(self.samples[engine])

    def best_rival(self, least: bool = False) -> str:
        """The rival's setting with the highest (or lowest) median."""
        return (min if least else max)((name for name in self.samples if name != OURS), key=self.middle)


class Store:
    """A file of results. Only those of the same machine, versions and length of run (`about`) count; the others stay where they are."""

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self._path, self._about = path, dict(about)
        self.results: dict[tuple[str, str], Result] = {result.key: result for result in self._read()}

    def _read(self) -> Iterator[Result]:
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line an interruption cut
                continue
            if entry["about"] == self._about:
                yield Result(**entry["result"])

    def add(self, result: Result) -> None:
        self.results[result.key] = result
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+") as file:
            if file.tell() and not self._path.read_text().endswith("\n"):
                file.write("\n")
            file.write(json.dumps({"about": self._about, "result": asdict(result)}) + "\n")

    def forget(self, group: str) -> None:
        """Do not count what was measured of a group before."""
        self.results = {key: result for key, result in self.results.items() if key[0] != group}
