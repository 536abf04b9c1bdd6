"""From a journal to results, and how they are told."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from labs.bench import flows, plots, report, results, scale
from labs.bench.results import Result
from labs.bench.resume import Journal
from tests.labs.bench.measured import MACHINE, fill, journal
from tracer.errors import FormatError, ToolMissing, UsageError

PLAN = scale.plan(quick=True, datapaths=("nftables", "ebpf"))
# shared/contract: what scripts rely on.
CONTRACT = {
    "datapath",
    "services",
    "new_flow_us",
    "short_connections_per_s",
    "keepalive_requests_per_s",
    "rules",
    "full_sync_s",
    "endpoint_update_ms",
    "memory_mb",
}


def collected(*filled: tuple[str, int, list[float], float]) -> list[Result]:
    kept = journal(PLAN)
    for one in filled:
        fill(kept, *one)
    return results.collect(kept, PLAN.datapaths, PLAN.sizes)


@pytest.fixture
def measured() -> list[Result]:
    return collected(
        ("ebpf", 10, [30.0, 31.0, 90.0], 0.4),
        ("ebpf", 100, [32.0, 31.0, 32.5], 0.5),
        ("nftables", 10, [29.0], 20.0),
        ("nftables", 100, [33.0], 30.0),
    )


def test_medians_count_and_of_new_flows_those_of_the_quickest_quarter(measured: list[Result]) -> None:
    first = next(one for one in measured if (one.datapath, one.services) == ("ebpf", 10))
    assert first.new_flow_us == {"p50": 30.0, "p90": 40.0, "p99": 130.0}
    assert first.by_target["last"] == {"p50": 31.0, "p90": 41.0, "p99": 131.0}
    assert first.by_target["direct"]["p50"] == 28.0
    assert (first.short_connections_per_s, first.keepalive_requests_per_s) == (1000.0, 20_000.0)
    assert (first.rules, first.full_sync_s, first.endpoint_update_ms, first.memory_mb) == (70, 0.5, 0.4, 3.0)
    assert first.spread["new_flow_us_p50"] == (30.0, 90.0)
    assert first.spread["endpoint_update_ms"] == (0.2, 0.8)


def test_spread_of_many_is_that_of_their_middle_half() -> None:
    (one,) = collected(("ebpf", 10, [10.0, 20.0, 30.0, 40.0, 50.0], 1.0))
    assert one.spread["new_flow_us_p50"] == (20.0, 40.0)
    assert one.new_flow_us["p50"] == 15.0


def test_results_are_by_number_of_services_and_then_in_the_order_of_datapaths(measured: list[Result]) -> None:
    order = [(one.services, one.datapath) for one in measured]
    assert order == [(10, "nftables"), (10, "ebpf"), (100, "nftables"), (100, "ebpf")]


def test_what_was_only_loaded_is_no_result() -> None:
    kept = journal(PLAN)
    kept.add("ebpf", 10, "load", {"full_sync_s": 0.1, "rules": 70, "memory_mb": None})
    assert results.collect(kept, PLAN.datapaths, PLAN.sizes) == []


def test_verdicts_tell_what_is_met_and_what_is_not(measured: list[Result]) -> None:
    found = {verdict.target: (verdict.met, verdict.measured) for verdict in results.verdicts(measured)}
    assert found == {
        "a new flow with 100 Services within 10% of one with 10": (True, "+3.3%"),
        "a new flow quicker than with every other datapath at 100 Services": (True, "31.0 µs, nftables 33.0 µs"),
        "one endpoint's change in effect within 2 ms at any size": (True, "0.50 ms"),
    }
    worse = collected(
        ("ebpf", 10, [30.0], 0.4),
        ("ebpf", 100, [33.1], 2.1),
        ("nftables", 10, [1.0], 1.0),
        ("nftables", 100, [33.1], 1.0),
    )
    assert [verdict.met for verdict in results.verdicts(worse)] == [False, False, False]
    assert results.verdicts(collected(("nftables", 10, [29.0], 20.0))) == []


def test_it_is_told_where_ebpf_does_not_win(measured: list[Result]) -> None:
    assert results.not_won(measured) == [
        "new flow, p50, µs: at 10 nftables 29.0 beside 30.0",
        "new flow to a pod, p50, µs: at 10 nftables 27.0 beside 28.0",
    ]
    assert results.not_won([one for one in measured if one.datapath == "ebpf"]) == []


def test_percentiles_are_measured_values() -> None:
    assert flows.percentiles(float(one) for one in range(200, 0, -1)) == {"p50": 100.0, "p90": 180.0, "p99": 198.0}
    assert flows.percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}


def test_document_is_what_the_contract_promises(measured: list[Result]) -> None:
    document: dict[str, Any] = json.loads(json.dumps(report.document(MACHINE, measured)))
    assert set(document) == {"machine", "results"}
    assert document["machine"] == MACHINE
    for one in document["results"]:
        assert set(one) >= CONTRACT
        assert set(one["new_flow_us"]) == {"p50", "p90", "p99"}
        assert set(one["new_flow_us_by_target"]) == {"first", "middle", "last", "direct"}


def test_csv_has_a_column_for_each_number(measured: list[Result]) -> None:
    rows = list(csv.DictReader(io.StringIO(report.as_csv(measured))))
    assert [(row["datapath"], row["services"], row["new_flow_us.p50"]) for row in rows] == [
        ("nftables", "10", "29.0"),
        ("ebpf", "10", "30.0"),
        ("nftables", "100", "33.0"),
        ("ebpf", "100", "31.0"),
    ]
    assert rows[1]["spread.new_flow_us_p50.low"] == "30.0"
    assert rows[1]["new_flow_us_by_target.direct.p50"] == "28.0"
    assert None not in rows[0].values()


def test_tables_fit_a_terminal_of_80_columns(measured: list[Result]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in report.tables(measured):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert text.count("nftables") == text.count(" ebpf ") == 4
    assert "30.0 to 90.0" in text


def test_a_busy_machines_figures_are_not_cut_at_80_columns(measured: list[Result]) -> None:
    slow = {"p50": 181.6, "p90": 1183.5, "p99": 27227.0}
    busy = dataclasses.replace(
        measured[0],
        datapath="iptables-legacy",
        services=10_000,
        new_flow_us=slow,
        by_target=dict.fromkeys(("first", "middle", "last", "direct"), slow),
        spread={**measured[0].spread, "new_flow_us_p50": (108.0, 199.1)},
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.tables([busy])[0])
    (row,) = (line for line in console.export_text().splitlines() if "10,000" in line)
    assert " ".join(row.split()) == "10,000 iptables-legacy 181.6 108.0 to 199.1 1183.5 27227 181.6 181.6 181.6"


def test_markdown_has_a_row_for_each_result(measured: list[Result]) -> None:
    text = report.markdown(measured)
    assert [line for line in text.splitlines() if line.startswith("| 100 | ebpf |")] == [
        "| 100 | ebpf | 31.0 | 31.0 to 32.5 | 41.0 | 131 | 30.0 | 32.0 | 29.0 |",
        "| 100 | ebpf | 1,000 | 20,000 | 700 | 3.0 | 0.50 | 0.50 |",
    ]


# --- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rounds.jsonl"
    fill(journal(PLAN, path), "ebpf", 10, [30.0])
    again = journal(PLAN, path, {**MACHINE, "load_average": [9.0, 9.0, 9.0]})
    assert again.machine == MACHINE
    assert [one["all"]["p50"] for one in again.of("ebpf", 10, "flows")] == [30.0]
    assert again.of("ebpf", 100, "flows") == again.of("nftables", 10, "flows") == []


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    fill(journal(PLAN, path), "ebpf", 10, [30.0, 31.0])
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[3][:20])
    again = journal(PLAN, path)
    again.add("ebpf", 10, "flows", {"all": {"p50": 5.0}})
    assert [one["all"]["p50"] for one in journal(PLAN, path).of("ebpf", 10, "flows")] == [30.0, 5.0]


@pytest.mark.parametrize("changed", [{"kernel": "6.12"}, {"cpu": "slide rule"}, {"cpus": 3}])
def test_the_journal_of_another_machine_is_left_alone(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "rounds.jsonl"
    journal(PLAN, path)
    with pytest.raises(UsageError, match="another machine"):
        journal(PLAN, path, {**MACHINE, **changed})


def test_the_journal_of_another_method_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    journal(PLAN, path)
    with pytest.raises(UsageError, match="other settings"):
        journal(scale.plan(), path)


@pytest.mark.parametrize("text", ["what?\n", "[]\n", '{"machine": 5}\n', "\n", ""])
def test_a_file_that_is_no_journal_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"rounds\.jsonl is no journal"):
        Journal.open(path, MACHINE, {})
    assert path.read_text() == text


# --- plots ------------------------------------------------------------------------------------------------------------


def test_plots_are_one_page_in_two_formats(measured: list[Result], tmp_path: Path) -> None:
    png, svg = plots.draw(measured, "a machine", tmp_path)
    assert (png.name, svg.name) == ("scale.png", "scale.svg")
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1100, 1430)
    identities = {element.get("id") for element in ElementTree.fromstring(svg.read_text()).iter()}
    assert {f"axes_{number}" for number in range(1, len(plots.PANELS) + 1)} <= identities
    assert f"axes_{len(plots.PANELS) + 1}" not in identities


def test_the_same_results_give_the_same_file(measured: list[Result], tmp_path: Path) -> None:
    one = plots.draw(measured, "a machine", tmp_path, "one")[1].read_text()
    assert plots.draw(measured, "a machine", tmp_path, "two")[1].read_text() == one


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ToolMissing, match="no plots: matplotlib"):
        plots.require()
