"""What `scripts/bench` prints: a table, or the same as JSON, with the machine that it was measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import cluster as cluster_bench
from tests.bench import hooks as hooks_bench
from tests.bench import overhead as overhead_bench
from tests.bench import switching as switching_bench
from tests.bench.__main__ import bench
from tests.bench.cluster import Result
from tests.bench.load import Run
from tests.bench.overhead import Pair

RESULTS = [
    Result("up", [2.0, 9.0, 1.0], "s", 3.0),
    Result("change", [0.6], "s", 0.5),
    Result("to 200 pods", [4.0], "s"),
]


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_bench, "measure_cluster", lambda *_: RESULTS[:1])
    monkeypatch.setattr(cluster_bench, "measure_proxy", lambda *_: RESULTS[1:])
    monkeypatch.setattr(hooks_bench, "measure", lambda *_: {hooks_bench.NOTHING: [1.0, 2.0, 3.0]})


def run(*arguments: str) -> str:
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_targets_stand_beside_what_was_measured() -> None:
    assert run("cluster").splitlines()[2:] == [
        "| up | 2.00 s | 1.00 to 9.00 | 3 s | yes |",
        "| change | 0.60 s |  | 0.5 s | no |",
        "| to 200 pods | 4.00 s |  |  |  |",
    ]


def test_json_says_the_same_and_so_does_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    printed = json.loads(run("cluster", "-o", "json", "--json", str(path)))
    assert printed["machine"]["processors"] >= 1
    assert [(one["what"], one["median"], one["target"], one["met"]) for one in printed["results"]] == [
        ("up", 2.0, 3.0, True),
        ("change", 0.6, 0.5, False),
        ("to 200 pods", 4.0, None, None),
    ]
    assert json.loads(path.read_text())["results"] == printed["results"]


def test_every_measurement_has_the_same_options() -> None:
    assert sorted(bench.commands) == ["cluster", "hooks", "overhead", "rules", "scale", "switching"]
    for name, command in bench.commands.items():
        if name == "scale":  # measures nothing: puts into the documents what `k8snet-lab bench scale` measured
            continue
        assert {"-o", "--output", "--json"} <= {option for parameter in command.params for option in parameter.opts}
    assert json.loads(run("hooks", "-o", "json"))["results"] == [
        {"attached": hooks_bench.NOTHING, "microseconds": [1.0, 2.0, 3.0]}
    ]


@pytest.mark.parametrize(
    ("number", "low", "high"),  # as tables of the sign test have them, for 95 %
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18), (60, 22, 39)],
)
def test_where_the_median_lies_by_ranks(number: int, low: int, high: int) -> None:
    assert overhead_bench.interval([float(value) for value in range(number, 0, -1)]) == (low, high)


def test_overhead_tells_how_sure_its_median_is() -> None:
    without = Run(1000.0, 10)
    pairs = [Pair(without, Run(1000.0 - 10 * number, 10), without, records=10, lost=0) for number in range(9)]
    assert overhead_bench.table([overhead_bench.Result("it", pairs)]).splitlines()[-1] == (
        "| it | 4.0% | 1.0% to 7.0% | 0.0% to 8.0% | 960 | 1,000 | 90 / 90 |"
    )


def test_switching_compares_each_window_with_those_beside_it() -> None:
    result = switching_bench.Result("it", watched=[90.0, 190.0], without=[100.0, 100.0, 300.0], summary="2 records")
    assert result.slowdowns == pytest.approx([0.1, 0.05])
    assert switching_bench.table([result]).splitlines()[2:] == [
        "| it | 7.5% | 5.0% to 10.0% | 5.0% to 10.0% | 140 | 100 | 2 |",
        "",
        "it: 2 records",
    ]
