"""From JUnit reports to the matrix: what counts as passed, failed, not offered, and when a run is no success."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.needs import BACKENDS
from tests.vm import matrix


def case(backend: str | None, outcome: str = "", module: str = "tests.kernel.test_nat") -> str:
    properties = f'<properties><property name="backend" value="{backend}"/></properties>' if backend else ""
    return f'<testcase classname="{module}" name="t">{properties}{f"<{outcome}/>" if outcome else ""}</testcase>'


@pytest.fixture
def row(tmp_path: Path) -> matrix.Row:
    report = tmp_path / "junit.xml"
    cases = [
        *[case("fentry"), case("fentry", "failure"), case("fentry", "error"), case("fentry", "skipped")],
        *[case("tracepoint"), case("tracepoint"), case("tracepoint", "skipped")],
        *[case("kprobe", "skipped"), case(None), case("unheard-of")],
    ]
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    row = matrix.Row("6.1")
    row.add_report(report)
    return row


def test_cells_count_cases_of_their_backend(row: matrix.Row) -> None:
    words = {name: cell.words for name, cell in row.cells.items()}
    assert words == {
        "fentry": "FAILED 2 of 3",
        "kprobe": "not offered",
        "tracepoint": "2 passed",
        "conntrack": "no tests",
    }
    assert row.other.words == "2 passed"


def test_failures_and_required_backends_without_a_pass_fall_short(row: matrix.Row) -> None:
    assert row.shortfall([]) == ["6.1: fentry: FAILED 2 of 3"]
    assert row.shortfall(BACKENDS) == [
        "6.1: fentry: FAILED 2 of 3",
        "6.1: kprobe: not offered",
        "6.1: conntrack: no tests",
    ]


def test_a_failure_outside_the_backends_falls_short(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(f"<testsuite>{case(None, 'failure')}</testsuite>")
    row = matrix.Row("6.1")
    row.add_report(report)
    assert row.shortfall([]) == ["6.1: other: FAILED 1 of 1"]


def test_a_kernel_that_did_not_boot_falls_short() -> None:
    row = matrix.Row("6.12", error="the guest ended without a result")
    assert row.shortfall([]) == ["6.12: the guest ended without a result"]


def test_table_has_a_line_for_each_kernel_and_aligned_columns(row: matrix.Row) -> None:
    text = matrix.table([row, matrix.Row("6.12.117+deb12", error="did not boot, for a reason told at length")])
    head, first, second = text.splitlines()
    assert head.split() == ["kernel", *BACKENDS, "other"]
    assert first.index("2 passed") == head.index("tracepoint")
    assert first.index("FAILED") == second.index("did not boot") == head.index("fentry")


def test_of_a_report_of_all_tests_only_the_wanted_ones_count(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    modules = (
        "tests.kernel.test_nat",
        "tests.kernel_more.test_x",
        "tests.tracer.source.test_conntrack",
        "tests.labs.test_x",
    )
    cases = "".join(case("tracepoint", module=module) for module in modules)
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    row = matrix.Row("6.18")
    row.add_report(report, ["tests/kernel", "tests/tracer/source/test_conntrack.py"])
    assert row.cells["tracepoint"].passed == 2
