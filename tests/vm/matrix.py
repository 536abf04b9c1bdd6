"""The matrix of kernel x backend: what pytest's JUnit reports say, and how it looks.

What belongs here: report -> cells -> table. What does not: making the reports (guest.py).
A test says which backend it is about through its parameter `backend`; conftest.py writes that into the report.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.needs import BACKENDS


@dataclass
class Cell:
    """How the tests of one backend went on one kernel."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def words(self) -> str:
        """What the cell shows: `12 passed`, `FAILED 2 of 12`, `not offered`, or `no tests`."""
        if self.failed:
            return f"FAILED {self.failed} of {self.failed + self.passed}"
        if self.passed:
            return f"{self.passed} passed"
        return "not offered" if self.skipped else "no tests"


@dataclass
class Row:
    """One kernel. `error`: why there are no results at all. `other`: tests that are about no backend."""

    kernel: str
    cells: dict[str, Cell] = field(default_factory=lambda: {name: Cell() for name in BACKENDS})
    other: Cell = field(default_factory=Cell)
    error: str | None = None

    def add_report(self, path: Path, tests: Iterable[str] | None = None) -> None:
        """Count the test cases of a JUnit report: all of them, or those of some files or directories."""
        modules = None if tests is None else [test.removesuffix(".py").replace("/", ".") for test in tests]
        for case in ElementTree.parse(path).iter("testcase"):
            name = f"{case.get('classname', '')}."
            if modules is None or any(name.startswith(f"{module}.") for module in modules):
                self._add(case)

    def _add(self, case: ElementTree.Element) -> None:
        names = {item.get("name"): item.get("value") for item in case.iter("property")}
        cell = self.cells.get(names.get("backend") or "", self.other)
        if case.find("failure") is not None or case.find("error") is not None:
            cell.failed += 1
        elif case.find("skipped") is not None:
            cell.skipped += 1
        else:
            cell.passed += 1

    def shortfall(self, required: Iterable[str]) -> list[str]:
        """Why this row is not good: failures, and required backends on which nothing passed."""
        if self.error is not None:
            return [f"{self.kernel}: {self.error}"]
        found = [f"{self.kernel}: {name}: {cell.words}" for name, cell in self._all() if cell.failed]
        found += [
            f"{self.kernel}: {name}: {self.cells[name].words}" for name in required if not self.cells[name].passed
        ]
        return list(dict.fromkeys(found))

    def _all(self) -> list[tuple[str, Cell]]:
        return [*self.cells.items(), ("other", self.other)]


def table(rows: list[Row]) -> str:
    """The matrix as aligned text, one line for each kernel."""
    lines = [["kernel", *BACKENDS, "other"]]
    for row in rows:
        if row.error is not None:
            lines.append([row.kernel, row.error])
        else:
            lines.append([row.kernel, *(cell.words for _name, cell in row._all())])
    widths = [max(len(line[i]) for line in lines if len(line) > max(i, 2)) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)).rstrip() for line in lines
    )
