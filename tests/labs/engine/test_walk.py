"""The lessons' commands through the front door, on clusters: what a learner types, what comes back, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.labs.engine import lessons
from tests.labs.lab import Lab, lab, start_time

pytestmark = [pytest.mark.root, pytest.mark.bpf, pytest.mark.slow]

CALL = ("curl", "-sS", "--max-time", "5", "http://lets-ship-it.fastapi:8000/")
START_SECONDS = 4.0
CHECK_SECONDS = 2.0
GONE_SECONDS = 5.0


@dataclass
class Learner:
    """Somebody with files of his own, who has lessons run on a cluster of this name."""

    directory: Path
    cluster: Lab
    more: dict[str, str]

    def run(self, command: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Type a command; it must end with this code."""
        env = {
            **os.environ,
            "XDG_STATE_HOME": str(self.directory / "state"),
            "K8SNET_LAB_FILES": str(self.directory / "files"),
            "COLUMNS": "100",
            **self.more,
        }
        done = lab(command, "--name", self.cluster.name, *arguments, check=False, env=env)
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, command: str, *arguments: str, code: int = 0) -> Any:
        """Type a command with `-o json`; what it prints."""
        return json.loads(self.run(command, *arguments, "-o", "json", code=code).stdout)

    def call(self) -> None:
        """What "First sight" asks for."""
        self.cluster.exec("default/client", *CALL)

    def recorder(self) -> dict[int, str]:
        """The processes of the live trace, the keeper and k8snet-trace: pid -> start time.

        k8snet-trace may just have started a program that reads rules, which is gone by the next look.
        """
        keeper = json.loads((self.directory / "state/k8snet/recorder.json").read_text())["pid"]
        (trace,) = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return {pid: start_time(pid) for pid in (keeper, int(trace))}

    def files(self) -> list[str]:
        """What is kept of him."""
        return sorted(path.name for path in (self.directory / "state/k8snet").iterdir())


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    """A learner, whose cluster is gone afterwards."""
    made = Learner(tmp_path, Lab(), {})
    try:
        yield made
    finally:
        made.run("stop")
        made.cluster.run("down")


def timed(what: Callable[[], Any]) -> float:
    """How long it takes."""
    started = time.monotonic()
    what()
    return time.monotonic() - started


def left(processes: dict[int, str], seconds: float) -> list[int]:
    """Those that are still there after so long a wait."""
    deadline = time.monotonic() + seconds
    while (there := [pid for pid, began in processes.items() if start_time(pid) == began]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return there


def test_a_lesson_from_its_start_to_its_end(learner: Learner) -> None:
    (first, *_) = learner.json("list")
    assert first == {
        "id": "first-sight",
        "title": "First sight",
        "order": 1,
        "minutes": 5,
        "needs": [],
        "done": False,
    }
    assert "Call a Service" in learner.run("show", "first-sight").stdout
    assert learner.run("check", code=3).stderr == "error: no lesson has been started\nhint: sudo k8snet-lab start\n"

    learner.run("start")
    shown = learner.run("show").stdout
    assert "Step 1 of 2: A cluster on this machine" in shown
    assert "Step 2 of 2: Call a Service" in shown
    assert learner.run("answer", "a", code=2).stderr.startswith("error: the step that is to be done asks for no answer")

    told = learner.run("check", code=1).stdout
    assert "✗ Step 2: Call a Service" in told
    assert "seen: none" in told
    report = learner.json("check", code=1)
    (step,) = report["steps"]
    assert (report["lesson"], report["result"], report["now"]) == ("first-sight", "fail", "call")
    assert (step["id"], step["result"], step["reason"]) == ("call", "fail", "not-seen")

    hints = [learner.run("hint").stdout for _ in range(5)]
    assert [text.partition("\n")[0] for text in hints[:4]] == [
        "What the check sees:",
        "Hint 1 of 3:",
        "Hint 2 of 3:",
        "Hint 3 of 3:",
    ]
    assert "There are no more hints" in hints[4]

    learner.call()
    assert "✓ Step 2: Call a Service" in learner.run("check").stdout
    report = learner.json("check")
    assert (report["result"], report["now"], report["steps"]) == ("pass", None, [])
    assert "Lesson 1 is done." in learner.run("check").stdout
    assert learner.json("list")[0]["done"] is True

    recorder, cluster = learner.recorder(), learner.cluster.directory
    assert "the lesson is closed" in learner.run("stop").stderr
    assert left(recorder, 0.0) == []
    assert not cluster.exists()
    assert learner.files() == ["progress.json"]
    learner.run("check", code=3)
    assert "no lesson was open" in learner.run("stop").stderr


@pytest.mark.alone
def test_start_and_check_are_quick(learner: Learner, patience: float) -> None:
    """The best of three counts: what else the machine does is not ours."""
    starts, checks = [], []
    for _ in range(3):
        starts.append(timed(lambda: learner.run("start", "first-sight")))
        learner.call()
        checks.append(timed(lambda: learner.run("check")))
    assert min(starts) < START_SECONDS * patience
    assert min(checks) < CHECK_SECONDS * patience


def test_solve_and_reset(learner: Learner) -> None:
    assert "✓ Step 2: Call a Service" in learner.run("solve", "first-sight", "--step").stdout
    progress = learner.directory / "state/k8snet/progress.json"
    solved = json.loads(progress.read_text())["lessons"]["first-sight"]["call"]
    assert solved["assisted"] is True

    learner.run("reset")
    assert learner.json("list")[0]["done"] is True, "what was passed stays passed"
    assert learner.json("check", code=1)["now"] == "call"
    learner.call()
    before = learner.recorder()
    learner.run("reset", "--step")
    assert left(before, 0.0) == []
    assert learner.json("check", code=1)["now"] == "call", "what was called before is forgotten"
    learner.call()
    learner.run("check")

    learner.run("reset", "--step", "--all", code=2)
    learner.run("reset", "--all")
    assert learner.json("list")[0]["done"] is False
    assert not learner.cluster.directory.exists()
    learner.run("reset", code=3)


def test_answers(learner: Learner, tmp_path: Path) -> None:
    """Lessons of the test's own, which ask for an answer."""
    shop = lessons.LAB.replace('id = "web"', 'id = "shop"', 1).replace("order = 1", "order = 2")
    shop = shop.replace('"A web server"', '"A shop"').replace('concepts = ["service"]', "concepts = []")
    lessons.write(tmp_path / "course/01-web", manifest=lessons.MANIFEST)
    lessons.write(tmp_path / "course/02-shop", manifest=lessons.MANIFEST, lab=shop)
    learner.more["K8SNET_LAB_LESSONS"] = str(tmp_path / "course")
    learner.run("start", "web")
    assert learner.run("answer", "z", code=2).stderr.startswith("error: z: choose one of a, b")
    assert "Step 3 of 4: Find its address" in learner.run("answer", "b", code=1).stdout
    assert "your answer 10.96.0.1 is not it" in learner.run("answer", "10.96.0.1", code=1).stdout
    learner.run("answer", "--later", "10.96.0.77")
    assert [step["id"] for step in learner.json("check", code=1)["steps"]] == ["find"]
    patch = '{"spec":{"type":"NodePort"}}'
    learner.cluster.exec("node1", "kubectl", "patch", "service", "web", "-p", patch)
    assert "Lesson 1 is done." in learner.run("check").stdout
    learner.run("start")
    assert learner.json("check", code=1)["lesson"] == "shop"
    learner.run("check", "web", code=2)


def test_a_cluster_that_was_killed(learner: Learner) -> None:
    learner.run("start")
    recorder = learner.recorder()
    os.kill(learner.cluster.status()["supervisor"], signal.SIGKILL)
    assert left(recorder, GONE_SECONDS) == []
    report = learner.json("check", code=3)
    (step,) = report["steps"]
    assert (report["result"], step["result"], step["reason"]) == ("blocked", "blocked", "")
    assert step["seen"] == f"cluster {learner.cluster.name} is not up"
    assert step["look"] == "sudo k8snet-lab reset"
    learner.run("solve", code=3)
    learner.run("reset")
    learner.call()
    learner.run("check")


def test_a_cluster_that_was_taken_down(learner: Learner) -> None:
    learner.run("start")
    recorder = learner.recorder()
    learner.cluster.run("down")
    assert left(recorder, GONE_SECONDS) == []
    learner.run("check", code=3)


def test_a_recorder_that_was_killed(learner: Learner) -> None:
    learner.run("start")
    recorder = learner.recorder()
    os.kill(min(recorder, key=lambda pid: int(recorder[pid])), signal.SIGKILL)
    assert left(recorder, GONE_SECONDS) == []
    learner.call()
    told = learner.run("check", code=3).stdout
    assert "the live trace of this lesson has ended" in told
    assert "sudo k8snet-lab reset" in told


def test_a_cluster_that_no_lesson_made_is_left_alone(learner: Learner) -> None:
    with learner.cluster as running:
        done = learner.run("start", code=2)
        assert done.stderr.startswith(f"error: cluster {running.name} is up, and no lesson started it\nhint: ")
        running.exec("default/client", "true")
        learner.run("check", code=3)
        assert "no lesson was open" in learner.run("stop").stderr
        running.exec("default/client", "true")


def test_one_lesson_at_a_time(learner: Learner) -> None:
    """Another one, under another name: the first one's cluster and trace end."""
    learner.run("start")
    first, before = learner.recorder(), learner.cluster
    learner.cluster = Lab()
    learner.run("start")
    assert left(first, 0.0) == []
    assert not before.directory.exists()
    learner.call()
    learner.run("check")


def test_calls_in_another_cluster_are_not_kept(learner: Learner) -> None:
    """It has the same names and addresses, on the same machine."""
    learner.run("start")
    with Lab() as other:
        for _ in range(3):
            other.exec("default/client", *CALL)
    learner.call()
    learner.run("check")
    records = (learner.directory / "state/k8snet/records.jsonl").read_text().splitlines()
    assert len([one for one in records if '"protocol": "TCP"' in one and '"comm": "curl"' in one]) == 1


def test_files_belong_to_the_user_behind_sudo(learner: Learner) -> None:
    nobody = 65534
    learner.more["SUDO_UID"] = str(nobody)
    learner.run("start")
    assert learner.files() == [
        *("progress.json", "recorder.json", "records.jsonl", "records.log", "records.ready", "session.json")
    ]
    state = learner.directory / "state"
    assert {path.stat().st_uid for path in (state, *state.rglob("*"))} == {nobody}
