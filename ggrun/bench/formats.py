"""Results as text: one class a format, all in FORMATS. Each writes row by row, so that what was measured is on the screen at once.

A writer is made with every entry that will run, which settles its columns and their widths; begin() comes before the first row, end()
after the last one, also when it is not the last that was planned.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggrun import __version__
from ggrun.bench.matrix import Settings
from ggrun.bench.result import Entry, Result
from ggrun.plan.ledger import human


class Writer:
    """Turns results into the text of one format; this one writes nothing."""

    def __init__(self, entries: Sequence[Entry]) -> None: ...

    def begin(self) -> str:
        return ""

    def row(self, result: Result) -> str:
        return ""

    def end(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; one with a default is shown only when some entry differs from it."""

    heading: str
    value: Callable[[Entry], object]
    default: object = None
    left: bool = False


def _setting(name: str) -> Column:
    return Column(name, lambda entry: getattr(entry.settings, name), getattr(Settings(), name))


COLUMNS = (
    Column("model", lambda entry: entry.model.type, left=True),
    Column("size", lambda entry: human(entry.model.n_bytes)),
    Column("params", lambda entry: count(entry.model.n_params)),
    Column("backend", lambda entry: entry.backend, left=True),
    Column("ngl", lambda entry: entry.n_gpu_layers, 0),
    Column("threads", lambda entry: entry.n_threads),
    *(_setting(name) for name in ("n_batch", "n_ubatch", "type_k", "type_v", "n_cpu_moe", "load_mode")),
    Column("test", lambda entry: entry.case.name),
)


class Markdown(Writer):
    """llama-bench's table: a row a test, with mean and standard deviation of tokens a second."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        shown = [c for c in COLUMNS if c.default is None or any(c.value(entry) != c.default for entry in entries)]
        self._table = _Table(shown, entries, {"t/s": 16})

    def begin(self) -> str:
        return self._table.head()

    def row(self, result: Result) -> str:
        row = result.row()
        return self._table.row(result.entry, f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}")

    def end(self) -> str:
        return f"\nbuild: ggrun {__version__}\n"


class Sweep(Writer):
    """A row a depth, prompt and answer side by side, in the columns of llama.cpp's sweep-bench; expects them in this order.

    What is the same in every row stands once, above the table.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        settled = [c for c in COLUMNS if c.heading != "test"]
        self._same = [c for c in settled if len({c.value(entry) for entry in entries}) == 1]
        widths = {"PP": 5, "TG": 5, "N_KV": 6, "T_PP s": 8, "S_PP t/s": 8, "T_TG s": 8, "S_TG t/s": 8}
        self._table = _Table([c for c in settled if c not in self._same], entries, widths)
        self._entries = entries
        self._prompt: Result | None = None

    def begin(self) -> str:
        shown = (c for c in self._same if c.default is None or c.value(self._entries[0]) != c.default)
        same = (f"{c.heading} {c.value(self._entries[0])}" for c in shown)
        return ", ".join(same) + "\n\n" + self._table.head()

    def row(self, result: Result) -> str:
        if result.entry.case.n_prompt:
            self._prompt = result
            return ""
        assert self._prompt is not None, "the prompt of a depth comes before its answer"
        pp, tg = self._prompt.row(), result.row()
        speeds = (f"{row[key] / scale:{form}}" for row in (pp, tg) for key, scale, form in (("avg_ns", 1e9, ".3f"), ("avg_ts", 1, ".2f")))
        return self._table.row(result.entry, pp["n_prompt"], tg["n_gen"], tg["n_depth"], *speeds)


class Csv(Writer):
    """A row a test under a row of llama-bench's keys, every value quoted."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._head = False

    def row(self, result: Result) -> str:
        row = _plain(result.row())
        head = "" if self._head else _csv_line(row)
        self._head = True
        return head + _csv_line(row.values())


class Json(Writer):
    """One array of objects, valid also when it was cut short."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._before = "["

    def row(self, result: Result) -> str:
        before, self._before = self._before, ","
        return f"{before}\n  " + json.dumps(result.row() | result.samples(), indent=2).replace("\n", "\n  ")

    def end(self) -> str:
        return "[]\n" if self._before == "[" else "\n]\n"


class JsonLines(Writer):
    """An object a line."""

    def row(self, result: Result) -> str:
        return json.dumps(result.row() | result.samples()) + "\n"


class Sql(Writer):
    """Statements that make llama-bench's table, unless it is there, and fill it."""

    TYPES: Mapping[type, str] = {str: "TEXT", int: "INTEGER", float: "REAL"}

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._head = False

    def row(self, result: Result) -> str:
        row = _plain(result.row())
        fields = ",\n".join(f"  {name} {self.TYPES[type(value)]}" for name, value in row.items())
        head = "" if self._head else f"CREATE TABLE IF NOT EXISTS llama_bench (\n{fields}\n);\n\n"
        self._head = True
        values = ", ".join("'" + str(value).replace("'", "''") + "'" for value in row.values())
        return head + f"INSERT INTO llama_bench ({', '.join(row)}) VALUES ({values});\n"


FORMATS: Mapping[str, type[Writer]] = {"md": Markdown, "csv": Csv, "json": Json, "jsonl": JsonLines, "sql": Sql, "sweep": Sweep}


class _Table:
    """A markdown table, aligned: some columns say what an entry is, then come figures of the given widths."""

    def __init__(self, columns: Sequence[Column], entries: Sequence[Entry], figures: Mapping[str, int]) -> None:
        self._columns = columns
        texts = [[c.heading, *(str(c.value(entry)) for entry in entries)] for c in columns]
        self._headings = [c.heading for c in columns] + list(figures)
        self._widths = [max(map(len, column)) for column in texts] + [max(len(name), width) for name, width in figures.items()]
        self._left = [c.left for c in columns] + [False] * len(figures)

    def head(self) -> str:
        rule = ("-" * width if left else "-" * (width - 1) + ":" for width, left in zip(self._widths, self._left))
        return self._line(self._headings) + self._line(rule)

    def row(self, entry: Entry, *figures: object) -> str:
        return self._line([*(c.value(entry) for c in self._columns), *figures])

    def _line(self, cells: Any) -> str:
        padded = (str(cell).ljust(width) if left else str(cell).rjust(width) for cell, width, left in zip(cells, self._widths, self._left))
        return "| " + " | ".join(padded) + " |\n"


def count(n: int) -> str:
    """A number of parameters as llama-bench writes it: 1.24 B, 3.87 M."""
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.2f} M"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for formats without truth values: 0 and 1."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in row.items()}


def _csv_line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(values)
    return text.getvalue()
