"""Which records are a cluster's own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.cluster.ledger import find_cgroup_root
from labs.engine.recorder import Own
from tests import needs
from tests.conftest import lacking

pytestmark = pytest.mark.root


def record(cgroup: Path) -> bytes:
    return b'{"type": "connection", "process": {"pid": 7, "cgroup_id": %d, "netns": 1}}' % cgroup.stat().st_ino


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this test's, with one in it."""
    root = find_cgroup_root()
    lacking([needs.Missing("needs cgroup v2", "mount -t cgroup2 none /sys/fs/cgroup")] if root is None else [])
    assert root is not None
    made = root / f"k8snet-test-{secrets.token_hex(4)}"
    (made / "node1").mkdir(parents=True)
    yield made
    (made / "node1").rmdir()
    made.rmdir()


def test_only_what_runs_in_the_clusters_cgroup(cgroup: Path) -> None:
    own = Own(str(cgroup))
    assert own.has(record(cgroup))
    assert own.has(record(cgroup / "node1"))
    assert not own.has(record(cgroup.parent))
    assert not Own(f"{cgroup}-other").has(record(cgroup / "node1"))


def test_a_cgroup_that_is_gone_is_nobodys(cgroup: Path) -> None:
    (cgroup / "node2").mkdir()
    line = record(cgroup / "node2")
    (cgroup / "node2").rmdir()
    assert not Own(str(cgroup)).has(line)


@pytest.mark.parametrize("cgroup_of_cluster", [None, "/sys/fs/cgroup/k8snet-x"])
def test_a_record_without_a_process_may_be_anybodys(cgroup_of_cluster: str | None) -> None:
    assert Own(cgroup_of_cluster).has(b'{"type": "connection", "process": null}')


def test_without_cgroups_all_is_kept() -> None:
    assert Own(None).has(record(Path("/")))
