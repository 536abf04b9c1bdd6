"""The ledger, the lock, and removing what outlives processes."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.cluster import ledger as ledger_module
from labs.cluster.ledger import ClusterLock, Ledger, find_cgroup_root, open_process, process_identity, remove_cgroup
from tracer.errors import K8snetError, UsageError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state root of our own."""
    monkeypatch.setattr(ledger_module, "STATE_ROOT", tmp_path / "k8snet")
    return tmp_path / "k8snet"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    found = find_cgroup_root()
    if found is None or os.geteuid() != 0:
        pytest.skip("needs root and cgroup v2; to run it: sudo scripts/test")
    path = found / f"k8snet-test-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    remove_cgroup(path)


class TestLock:
    def test_one_at_a_time(self, root: Path) -> None:
        first = ClusterLock.take("a")
        assert first is not None
        assert ClusterLock.take("a") is None
        assert ClusterLock.is_held("a")
        first.release()
        assert not ClusterLock.is_held("a")
        second = ClusterLock.take("a")
        assert second is not None
        second.release()

    def test_it_lasts_as_long_as_any_copy(self, root: Path) -> None:
        lock = ClusterLock.take("a")
        assert lock is not None
        heir = subprocess.Popen(["sleep", "infinity"], pass_fds=(lock.fd,))
        lock.release()
        assert ClusterLock.is_held("a")
        heir.kill()
        heir.wait()
        assert not ClusterLock.is_held("a")

    def test_clusters_do_not_disturb_each_other(self, root: Path) -> None:
        locks = [ClusterLock.take(name) for name in ("a", "b")]
        assert None not in locks
        for lock in locks:
            assert lock is not None
            lock.release()

    def test_asking_makes_nothing(self, root: Path) -> None:
        assert not ClusterLock.is_held("a")
        assert not root.exists()


class TestLedger:
    def test_what_is_written_is_read(self, root: Path) -> None:
        (root / "a").mkdir(parents=True)
        ledger = Ledger("a", cgroup="/x", guardian=(1, 2), notes=["n"])
        ledger.write()
        assert Ledger.read("a") == ledger

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "a", "strange": 1}', '{"name": "a", "guardian": [1]}'])
    def test_a_broken_one_is_an_empty_one(self, root: Path, text: str) -> None:
        (root / "a").mkdir(parents=True)
        (root / "a" / "ledger.json").write_text(text)
        assert Ledger.read("a") == Ledger("a")

    def test_everything_goes_and_the_root_with_the_last(self, root: Path) -> None:
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            Ledger(name).write()
        Ledger.read("a").remove_everything()
        assert [path.name for path in root.iterdir()] == ["b"]
        Ledger.read("b").remove_everything()
        assert not root.exists()
        Ledger.read("b").remove_everything()  # once more does no harm

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "A", "a\n", "a" * 33, "-a"])
    def test_a_name_that_is_none_leads_nowhere(self, root: Path, name: str) -> None:
        for action in (ledger_module.state_directory, ClusterLock.take, ClusterLock.is_held, Ledger.read):
            with pytest.raises(UsageError, match="can't name a cluster"):
                action(name)
        with pytest.raises(UsageError):
            Ledger(name).remove_everything()
        assert not root.exists()

    def test_files_that_are_not_its_own_stay(self, root: Path) -> None:
        (root / "a").mkdir(parents=True)
        (root / "a" / "precious").write_text("x")
        Ledger("a").write()
        Ledger.read("a").remove_everything()
        assert [path.name for path in (root / "a").iterdir()] == ["precious"]

    def test_cgroups_that_it_does_not_name_stay(self, root: Path, cgroup: Path) -> None:
        (root / "a").mkdir(parents=True)
        Ledger("a").remove_everything()
        assert cgroup.exists()


class TestCgroups:
    def test_a_tree_with_processes_goes(self, cgroup: Path) -> None:
        leaf = cgroup / "node1" / "kubepods" / "besteffort" / "podx"
        leaf.mkdir(parents=True)
        process = subprocess.Popen(["sleep", "infinity"])
        (leaf / "cgroup.procs").write_text(str(process.pid))
        remove_cgroup(cgroup)
        assert not cgroup.exists()
        assert process.wait(timeout=5) == -9

    def test_one_that_is_gone_is_no_error(self) -> None:
        remove_cgroup(Path("/sys/fs/cgroup/k8snet-gone"))

    @pytest.mark.parametrize("name", ["/sys/fs/cgroup/no-such.slice", "/no/such/k8snet-x", "k8snet-x"])
    def test_what_is_not_ours_is_left_alone(self, name: str) -> None:
        """Names of nothing, so that a failure of this test can't harm anything: they would be passed over."""
        with pytest.raises(K8snetError, match="left alone"):
            remove_cgroup(Path(name))

    def test_nothing_outside_the_cgroup_file_system_either(self, tmp_path: Path) -> None:
        (tmp_path / "k8snet-x").mkdir()
        with pytest.raises(K8snetError, match="left alone"):
            remove_cgroup(tmp_path / "k8snet-x")
        assert (tmp_path / "k8snet-x").exists()

    def test_one_that_stays_busy_is_told(self, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def busy(path: str) -> None:
            raise OSError(16, "Device or resource busy", path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rmdir", busy)
            with pytest.raises(K8snetError, match="still in the cgroup"):
                remove_cgroup(cgroup, patience=0.05)


class TestProcesses:
    def test_an_identity_leads_to_its_process_only(self) -> None:
        process = subprocess.Popen(["sleep", "infinity"])
        try:
            identity = process_identity(process.pid)
            fd = open_process(identity)
            assert fd is not None
            os.close(fd)
            assert open_process((identity[0], identity[1] + 1)) is None, "a reused id"
        finally:
            process.kill()
            process.wait()
        assert open_process(identity) is None
        assert open_process(None) is None
