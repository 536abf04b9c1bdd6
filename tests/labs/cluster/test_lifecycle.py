"""A cluster comes and goes: quickly, once, whole or not at all. (The machine stays as it was: test_machine.py.)"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.labs.lab import REPOSITORY, Lab, Trace, lab

pytestmark = pytest.mark.root

UP_SECONDS = 3.0
DOWN_SECONDS = 1.0
SLACK = 3.0  # this machine may be doing other things as well


def timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


@contextlib.contextmanager
def starting(cluster: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """`up`, under way; whatever becomes of it, the cluster is gone afterwards."""
    command = [sys.executable, "-m", "labs.cli", "up", "--name", cluster.name]
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.__exit__)
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        stack.callback(stop, process)
        yield process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill `up`, if it is not over, and let go of its pipe."""
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


class TestUpAndDown:
    def test_up_and_down_are_quick_and_leave_nothing(self, patience: float) -> None:
        cluster = Lab()
        try:
            seconds = timed(cluster.__enter__)
            trace = Trace.of(cluster)
        finally:
            ending = timed(cluster.__exit__)
        assert seconds < UP_SECONDS * SLACK * patience
        assert ending < DOWN_SECONDS * SLACK * patience
        assert len(trace.processes) > 12, "guardian, supervisor, runtimes, pods"
        assert trace.wait_until_gone(1) == []

    def test_up_again_changes_nothing(self) -> None:
        with Lab() as cluster:
            supervisor = cluster.status()["supervisor"]
            again = lab("up", "--name", cluster.name)
            assert "already" in again.stderr
            assert cluster.status()["supervisor"] == supervisor

    def test_up_with_other_options_is_refused_and_says_what_is_there(self) -> None:
        with Lab() as cluster:
            refused = lab("up", "--name", cluster.name, "--nodes", "3", check=False)
            assert refused.returncode == 1
            assert "with nodes 2" in refused.stderr
            assert "hint: k8snet-lab down" in refused.stderr

    def test_down_without_a_cluster_is_no_error(self) -> None:
        assert "was not up" in lab("down", "--name", Lab().name).stderr

    def test_two_ups_at_once_make_one_cluster(self) -> None:
        cluster = Lab()
        with starting(cluster) as one, starting(cluster) as other:
            said = [process.communicate(timeout=60)[1].decode() for process in (one, other)]
            assert [one.returncode, other.returncode] == [0, 0]
            assert sorted("already" in text for text in said) == [False, True], said
            assert cluster.status()["ready"]

    def test_two_clusters_side_by_side(self) -> None:
        with Lab() as one, Lab() as two:
            assert one.status()["supervisor"] != two.status()["supervisor"]
            for cluster in (one, two):
                names = {pod["name"] for pod in cluster.pods("fastapi")}
                assert cluster.get("default/client", "http://10.96.100.50:8000/")["pod"] in names

    @pytest.mark.parametrize(
        "options", [("--nodes", "1"), ("--nodes", "3"), ("--iptables", "legacy"), ("--iptables", "nft")]
    )
    def test_other_sizes_and_both_variants_of_iptables(self, options: tuple[str, ...]) -> None:
        with Lab(options) as cluster:
            count = int(options[1]) if options[0] == "--nodes" else 2
            assert [node["name"] for node in cluster.status()["nodes"]] == [f"node{n}" for n in range(1, count + 1)]
            for number in range(1, count + 1):
                assert cluster.get(f"node{number}", "http://10.96.100.50:8000/")["namespace"] == "fastapi"

    def test_a_failed_up_says_why_and_leaves_nothing(self, tmp_path: Path) -> None:
        cluster = Lab()
        manifest = tmp_path / "bad.yaml"
        manifest.write_text(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: odd}\nspec: {containers: [{name: a, image: no-such-image}]}\n"
        )
        failed = lab("up", "--name", cluster.name, "-f", str(manifest), check=False)
        assert failed.returncode == 1
        assert 'no image "no-such-image"' in failed.stderr
        assert "http-echo" in failed.stderr, "the images that there are"
        assert not cluster.directory.exists()

    def test_a_manifest_that_is_no_yaml_is_told_with_its_line(self, tmp_path: Path) -> None:
        manifest = tmp_path / "bad.yaml"
        manifest.write_text("kind: Pod\nspec: [\n")
        failed = lab("up", "--name", Lab().name, "-f", str(manifest), check=False)
        assert (failed.returncode, f"{manifest}:3" in failed.stderr) == (1, True)


class TestSuddenDeath:
    """Whoever is killed, nothing is left."""

    @pytest.mark.parametrize("victim", ["supervisor", "guardian"])
    def test_kill_one_of_a_running_cluster(self, victim: str, patience: float) -> None:
        with Lab() as cluster:
            trace = Trace.of(cluster)
            os.kill(cluster.ledger()[victim][0], signal.SIGKILL)
            assert trace.wait_until_gone(2 * patience) == []

    def test_kill_both_at_once_and_the_next_command_cleans_up(self, patience: float) -> None:
        with Lab() as cluster:
            trace = Trace.of(cluster)
            ledger = cluster.ledger()
            # Stopped first, so that neither can do anything for the other.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for who in ("guardian", "supervisor"):
                    os.kill(ledger[who][0], number)
            left = trace.wait_until_gone(0.5)
            assert [line for line in left if line.startswith("file")] == left, "only files are left"
            assert trace.cgroup is not None and trace.cgroup.exists()
            lab("down", "--name", cluster.name)
            assert trace.wait_until_gone(2 * patience) == []

    def test_up_works_again_after_both_were_killed(self) -> None:
        with Lab() as cluster:
            old = Trace.of(cluster)
            ledger = cluster.ledger()
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for who in ("guardian", "supervisor"):
                    os.kill(ledger[who][0], number)
            lab("up", "--name", cluster.name)
            assert old.cgroup is not None and not old.cgroup.exists()
            assert cluster.get("default/client", "http://10.96.100.50:8000/")["path"] == "/"

    def test_interrupting_up_leaves_nothing(self, patience: float) -> None:
        cluster = Lab()
        with starting(cluster) as process:
            while not cluster.ledger().get("supervisor"):
                time.sleep(0.001)
            time.sleep(0.3)
            trace = Trace.of(cluster)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert trace.wait_until_gone(2 * patience) == []

    def test_killing_up_itself_does_not_harm_the_cluster(self) -> None:
        cluster = Lab()
        with starting(cluster) as process:
            while not cluster.ledger().get("supervisor"):
                time.sleep(0.001)
            stop(process)
            assert "already" in lab("up", "--name", cluster.name).stderr


class TestWithoutRoot:
    @pytest.mark.parametrize("command", [("up",), ("down",)])
    def test_it_says_what_it_needs(self, command: tuple[str, ...]) -> None:
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        refused = lab(*command, "--name", Lab().name, check=False, **nobody)
        assert refused.returncode == 3
        assert "needs root" in refused.stderr or "only root" in refused.stderr
        assert "hint: " in refused.stderr
