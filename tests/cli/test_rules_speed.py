"""What is promised of a node with 10,000 Services, held at the front door; `scripts/bench rules` tells it all.

Times are compared with those of another program in the same run, where a promise allows. The fastest of some runs
counts: what else a machine does only adds to a time.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.bench.rules import MODES, Mode, change_times, inside, loaded, run
from tests.cli.command import TRACE
from tests.tracer.networks import Namespace
from tests.tracer.rules import scale

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVICES = 10_000


@pytest.fixture(scope="module", params=["legacy", "nft"])
def node(request: pytest.FixtureRequest) -> Iterator[tuple[Mode, Namespace]]:
    """A namespace with 110,000 nat rules."""
    mode = MODES[request.param]
    with loaded(mode, SERVICES) as (namespace, _):
        yield mode, namespace


def fastest(command: tuple[str, ...], times: int = 5) -> float:
    return min(run(command, 120.0)[0] or 120.0 for _ in range(times))


def test_explain_takes_three_times_as_long_as_printing_at_most(node: tuple[Mode, Namespace]) -> None:
    mode, namespace = node
    destination = f"{scale.cluster_ip(SERVICES // 2)}:80"
    explain = fastest((*inside(namespace), *TRACE, "explain", destination, "-o", "json"))
    assert explain <= 3 * fastest((*inside(namespace), *mode.printer))


def test_services_of_all_in_three_seconds_and_400_megabytes(node: tuple[Mode, Namespace], patience: float) -> None:
    """Or, where the program that prints the rules takes the most of that, in twice its time and a half."""
    mode, namespace = node
    command = (*inside(namespace), *TRACE, "services", "-o", "json")
    found = [run(command, 120.0) for _ in range(3)]
    limit = max(3 * patience, 2.5 * fastest((*inside(namespace), *mode.printer)))
    assert min(seconds or 120.0 for seconds, _, _ in found) < limit
    assert max(megabytes for _, _, megabytes in found) < 400
    done = subprocess.run(command, capture_output=True, check=True)
    documents = json.loads(done.stdout)
    assert len(documents) == SERVICES
    assert {len(document["endpoints"]) for document in documents} == {3}


def test_a_change_of_one_is_shown_within_two_seconds(node: tuple[Mode, Namespace], patience: float) -> None:
    mode, namespace = node
    times, _ = change_times(mode, SERVICES, namespace, 4)
    assert min(times) < 2 * patience, times
