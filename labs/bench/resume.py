"""What has been measured so far, kept so that an interrupted run goes on where it was.

A journal is a file of JSON lines, to which one line is added as soon as something has been measured: first a line about
the machine and the method, then {"datapath", "services", KIND: {…}}, where KIND is what the worker was asked for. The
kernel forgets what was loaded, so a run that goes on loads once more what it has not measured to the end.

What belongs here: reading and writing that file. What does not: what the numbers mean (`results`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracer.errors import FormatError, OutputError, UsageError

FILE = "rounds.jsonl"
# Two runs on machines that differ in these are not one.
SAME = ("cpu", "cpus", "kernel")

Entry = dict[str, Any]


class Journal:
    """The entries of a run, in order. `path`: where they are kept; None: nowhere."""

    def __init__(
        self, path: Path | None, machine: dict[str, Any], method: dict[str, Any], entries: list[Entry]
    ) -> None:
        self.path = path
        self.machine = machine
        self.method = method
        self.entries = entries

    @classmethod
    def open(cls, path: Path | None, machine: dict[str, Any], method: dict[str, Any]) -> Journal:
        """A journal to go on with, or a new one. Raises FormatError, OutputError; UsageError for another run."""
        if path is None or not path.exists():
            journal = cls(path, machine, method, [])
            journal._write({"machine": machine, "method": method})
            return journal
        head, entries = _read(path)
        hint = "give another directory as --output, or remove this one"
        if {name: head["machine"].get(name) for name in SAME} != {name: machine.get(name) for name in SAME}:
            raise UsageError(f"{path.parent} holds what another machine or kernel measured", hint=hint)
        if head["method"] != method:
            raise UsageError(f"{path.parent} holds a run with other settings (--quick)", hint=hint)
        if not path.read_text().endswith("\n"):
            path.write_text("".join(json.dumps(entry) + "\n" for entry in (head, *entries)))
        return cls(path, head["machine"], method, entries)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """What is in a file, to look at. Raises FormatError."""
        head, entries = _read(path)
        return cls(None, head["machine"], head["method"], entries)

    def add(self, datapath: str, services: int, kind: str, measured: dict[str, Any]) -> None:
        """Keep what a worker answered to `kind`. Raises OutputError."""
        entry = {"datapath": datapath, "services": services, kind: measured}
        self._write(entry)
        self.entries.append(entry)

    def of(self, datapath: str, services: int, kind: str) -> list[dict[str, Any]]:
        """All that was measured of one kind."""
        return [
            entry[kind]
            for entry in self.entries
            if kind in entry and (entry["datapath"], entry["services"]) == (datapath, services)
        ]

    def _write(self, entry: Entry) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error


def _read(path: Path) -> tuple[Entry, list[Entry]]:
    """The first line, and the others. The last one may have been cut off, and is left out then."""
    try:
        text = path.read_text()
        head, *entries = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if not (isinstance(head["machine"], dict) and isinstance(head["method"], dict)):
            raise ValueError("it begins otherwise")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FormatError(f"{path} is no journal of a measurement: {error}") from error
    return head, entries
