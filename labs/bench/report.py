"""Results as a table for a terminal, as Markdown, as CSV and as JSON.

What belongs here: how results look in text. What does not: plots (`plots`), arithmetic (`results`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from labs.bench.names import DIRECT, FIRST, LAST
from labs.bench.results import Result, Verdict
from tracer.errors import OutputError


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: `value` gives its text."""

    title: str
    value: Callable[[Result], str]


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


WHICH = (
    Column("Services", lambda one: f"{one.services:,}"),
    Column("datapath", lambda one: one.datapath),
)
FLOWS = (
    Column("p50", lambda one: f"{one.new_flow_us['p50']:.1f}"),
    Column("middle half", lambda one: "{:.1f} to {:.1f}".format(*one.spread["new_flow_us_p50"])),
    Column("p90", lambda one: f"{one.new_flow_us['p90']:.1f}"),
    Column("p99", lambda one: f"{one.new_flow_us['p99']:.0f}"),
    Column("first", lambda one: f"{one.by_target[FIRST]['p50']:.1f}"),
    Column("last", lambda one: f"{one.by_target[LAST]['p50']:.1f}"),
    Column("to a pod", lambda one: f"{one.by_target[DIRECT]['p50']:.1f}"),
)
REST = (
    Column("new /s", lambda one: _told(one.short_connections_per_s, ",.0f")),
    Column("kept /s", lambda one: _told(one.keepalive_requests_per_s, ",.0f")),
    Column("rules", lambda one: f"{one.rules:,}"),
    Column("MB", lambda one: _told(one.memory_mb, ".1f")),
    Column("full sync, s", lambda one: f"{one.full_sync_s:.2f}"),
    Column("change, ms", lambda one: _told(one.endpoint_update_ms, ".2f")),
)
# Title of each table, its columns, and what they mean: by a column's title, where it need not be there
TABLES: tuple[tuple[str, tuple[Column, ...], dict[str, str]], ...] = (
    (
        "Time of a new flow, µs",
        (*WHICH, *FLOWS),
        {
            "p50": "connect() to the first, a middle and the last Service in the order of the rules, in the quickest "
            "quarter of all turns",
            "middle half": "middle half: between which values the medians of half of the turns lie",
            "first": "first, last, to a pod: p50, the latter without any Service",
        },
    ),
    (
        "Rates, size, changes",
        (*WHICH, *REST),
        {
            "new /s": "new: connections of one request each",
            "kept /s": "kept: requests on connections that stay, the control",
            "rules": "rules: or map entries",
            "MB": "MB: memory of the kernel",
            "change, ms": "change: one endpoint's, until it is in effect",
        },
    ),
)


def document(machine: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """What `-o json` prints, and results.json holds."""
    return {"machine": machine, "results": [one.to_json() for one in results]}


def tables(results: Sequence[Result]) -> list[Table]:
    """For a terminal of 80 columns or more, with a line between numbers of Services."""
    return [_table(title, *_measured(columns, words, results), results) for title, columns, words in TABLES]


def _measured(columns: Sequence[Column], words: dict[str, str], results: Sequence[Result]) -> tuple[list[Column], str]:
    """The columns that hold anything, and what those mean."""
    shown = [column for column in columns if any(column.value(one) for one in results)]
    return shown, "; ".join(words[column.title] for column in shown if column.title in words)


def _table(title: str, columns: Sequence[Column], caption: str, results: Sequence[Result]) -> Table:
    """Figures of a busy machine are wider than others: a column must not lose its last digits for that."""
    drawn = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        padding=0,
        show_edge=False,
    )
    for column in columns:
        is_name = column.title == "datapath"
        drawn.add_column(column.title, justify="left" if is_name else "right")
    for one, following in zip(results, [*results[1:], None], strict=True):
        ends = following is not None and following.services != one.services
        drawn.add_row(*(column.value(one) for column in columns), end_section=ends)
    return drawn


def markdown(results: Sequence[Result]) -> str:
    """For docs/performance.md."""
    parts = []
    for title, every, words in TABLES:
        columns, caption = _measured(every, words, results)
        lines = [
            f"{title} ({caption}):",
            "",
            f"| {' | '.join(column.title for column in columns)} |",
            "|" + "---|" * len(columns),
        ]
        lines += [f"| {' | '.join(column.value(one) for column in columns)} |" for one in results]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def verdict_line(verdict: Verdict) -> str:
    """One target in words."""
    return f"{'met' if verdict.met else 'NOT met'}: {verdict.target} ({verdict.measured})"


def as_csv(results: Sequence[Result]) -> str:
    """One line for each result, everything of its JSON in columns of their own, such as new_flow_us.p50."""
    flat = [_flatten(one.to_json()) for one in results]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found |= {f"{prefix}{name}.low": value[0], f"{prefix}{name}.high": value[1]}
        else:
            found[prefix + name] = value
    return found


def write(directory: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """results.csv and results.json in `directory`, which is there. Raises OutputError."""
    text = {"results.csv": as_csv(results), "results.json": json.dumps(document(machine, results), indent=2) + "\n"}
    for name, content in text.items():
        try:
            (directory / name).write_text(content)
        except OSError as error:
            raise OutputError(f"{directory / name}: {error.strerror}") from error
