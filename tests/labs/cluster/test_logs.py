"""`kubectl logs` in all its forms, against containers that write, crash and go."""

from __future__ import annotations

import datetime
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.cluster.api.logs import LogOptions
from labs.cluster.containerlogs import stamp
from tests.labs.kubectl import Kubectl, name_of, oldest_and_newest, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

TALK = "for i in 1 2 3; do echo out $i; sleep 0.1; echo err $i >&2; sleep 0.1; done; sleep 1; echo late; sleep 1000"
LINES = ["out 1", "err 1", "out 2", "err 2", "out 3", "err 3", "late"]
TEXT = "".join(f"{line}\n" for line in LINES)


def pod(name: str, *scripts: str, **spec: Any) -> dict[str, Any]:
    """A pod with a container for each script: a, b, …"""
    containers = [
        {"name": chr(ord("a") + index), "image": "client", "command": ["sh", "-c", script]}
        for index, script in enumerate(scripts)
    ]
    metadata = {"name": name, "labels": {"app": name}}
    spec = {"terminationGracePeriodSeconds": 0, "containers": containers, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


PODS = [
    pod("talk", TALK),
    pod("two", "echo of a; sleep 1000", "echo of b; sleep 1000"),
    pod("crash", "echo started; seq 3; printf 'last words'; exit 3"),
    pod("over", "echo done", restartPolicy="Never"),
    pod("fast", "seq -f '%0100.0f' 50000; echo ready; sleep 1000"),
    pod("lost", "echo never"),
]
PODS[-1]["spec"]["containers"][0]["image"] = "no-such-image"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab(("--nodes", "1")) as up:
        yield up


@pytest.fixture(scope="module")
def kubectl(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """The kubectl on PATH, with the pods that all of them look at."""
    one = Kubectl(programs()[0], cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")
    one("apply", "-f", "-", feed=yaml.safe_dump_all(PODS))
    until(lambda: one("logs", "talk").endswith("late\n") and one("logs", "fast", "--tail=1") == "ready\n")
    return one


@pytest.fixture(params=oldest_and_newest() or [None], ids=lambda one: name_of(one) if one else "none")
def each(request: pytest.FixtureRequest, kubectl: Kubectl) -> Kubectl:
    """The oldest and the newest kubectl of this machine."""
    return Kubectl(request.param, kubectl.kubeconfig, kubectl.home, "default")


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except AssertionError:  # kubectl, whose pod is not there yet
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_lines_and_their_times(each: Kubectl) -> None:
    assert each("logs", "talk") == TEXT
    lines = [line.split(" ", 1) for line in each("logs", "talk", "--timestamps").splitlines()]
    assert [text for _, text in lines] == LINES
    times = [when for when, _ in lines]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", when) for when in times)
    moments = [datetime.datetime.fromisoformat(when).timestamp() for when in times]
    assert 0.9 < moments[-1] - moments[-2] < 5
    assert time.time() - 60 < moments[0] < time.time()


def test_parts_of_a_log(kubectl: Kubectl) -> None:
    assert kubectl("logs", "talk", "--tail=2") == "err 3\nlate\n"
    assert kubectl("logs", "talk", "--tail=0") == ""
    assert kubectl("logs", "talk", "--limit-bytes=8") == "out 1\ner"
    assert kubectl("logs", "talk", "--tail=3", "--limit-bytes=5") == "out 3"
    times = [line.split(" ", 1)[0] for line in kubectl("logs", "talk", "--timestamps").splitlines()]
    whole = datetime.datetime.fromisoformat(times[-1]).replace(microsecond=0) + datetime.timedelta(seconds=1)
    assert kubectl("logs", "talk", f"--since-time={whole.isoformat()}") == ""
    assert kubectl("logs", "talk", "--since-time=2020-01-01T00:00:00Z") == TEXT
    assert kubectl("logs", "talk", "--since=1h", "--tail=1") == "late\n"
    age = int(time.time() - datetime.datetime.fromisoformat(times[-1]).timestamp())
    if age > 2:
        assert kubectl("logs", "talk", f"--since={age - 1}s") == ""


def test_a_log_since_a_moment_has_what_came_later(kubectl: Kubectl) -> None:
    times = [line.split(" ", 1)[0] for line in kubectl("logs", "talk", "--timestamps").splitlines()]
    between = datetime.datetime.fromisoformat(times[-1]) - datetime.timedelta(seconds=0.5)
    path = f"/api/v1/namespaces/default/pods/talk/log?sinceTime={between.isoformat(timespec='microseconds')[:26]}Z"
    assert kubectl("get", "--raw", path) == "late\n"


def test_since_seconds_counts_from_now() -> None:
    before = stamp(time.time_ns() - 5_000_000_000)
    since = LogOptions.of({"sinceSeconds": "5"}, "talk").since
    assert before <= since <= stamp(time.time_ns() - 5_000_000_000)


def test_containers_and_pods(each: Kubectl) -> None:
    assert each("logs", "two", "-c", "b") == "of b\n"
    assert sorted(each("logs", "two", "--all-containers").splitlines()) == ["of a", "of b"]
    assert sorted(each("logs", "two", "--all-containers", "--prefix").splitlines()) == [
        "[pod/two/a] of a",
        "[pod/two/b] of b",
    ]
    assert each("logs", "-l", "app=talk", "--tail=-1") == TEXT
    assert each("logs", "deploy/lets-ship-it", "-n", "fastapi").endswith("listening on port 8000\n")


def test_a_crash_leaves_all_its_words(kubectl: Kubectl) -> None:
    until(lambda: "BackOff" in kubectl("get", "pod", "crash"))
    words = "started\n1\n2\n3\nlast words"
    assert (kubectl("logs", "crash"), kubectl("logs", "crash", "--previous")) == (words, words)
    stamped = kubectl("logs", "crash", "--previous", "--timestamps").splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == words.splitlines()


def test_a_container_that_has_ended(kubectl: Kubectl) -> None:
    until(lambda: "Completed" in kubectl("get", "pod", "over"))
    assert (kubectl("logs", "over"), kubectl("logs", "-f", "over")) == ("done\n", "done\n")
    assert 'previous terminated container "a" in pod "over" not found' in kubectl.fails("logs", "over", "--previous")


def test_nothing_of_a_fast_writer_is_lost(kubectl: Kubectl) -> None:
    lines = kubectl("logs", "fast").splitlines()
    assert lines == [f"{number:0100}" for number in range(1, 50001)] + ["ready"]


def test_following(kubectl: Kubectl) -> None:
    script = "echo zero; echo one; until test -e /run/go; do sleep 0.1; done; echo two; sleep 0.3; printf three"
    kubectl("apply", "-f", "-", feed=yaml.safe_dump(pod("grow", script, restartPolicy="Never")))
    until(lambda: "one\n" in kubectl("logs", "grow"))
    env = {"KUBECONFIG": kubectl.kubeconfig, "HOME": str(kubectl.home)}
    command = [kubectl.program, "logs", "-f", "grow", "--tail=1"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        kubectl("exec", "grow", "--", "touch", "/run/go")
        assert following.stdout.read() == "two\nthree"
        assert following.wait(30) == 0
    assert kubectl("logs", "-f", "grow") == "zero\none\ntwo\nthree"


def test_following_ends_at_the_limit_though_the_container_does_not(each: Kubectl) -> None:
    assert each("logs", "-f", "talk", "--limit-bytes=20") == TEXT[:20]


def test_following_goes_on_when_a_log_begins_anew_and_stops_with_the_pod(kubectl: Kubectl) -> None:
    numbers = "$((part * 80000 + 1)) $((part * 80000 + 80000))"
    script = f"sleep 1; for part in 0 1; do seq -f '%0100.0f' {numbers}; sleep 0.5; done"
    kubectl("apply", "-f", "-", feed=yaml.safe_dump(pod("long", f"{script}; echo last; sleep 1000")))
    until(lambda: kubectl("get", "pod", "long", "-o", "jsonpath={.status.phase}") == "Running")
    with subprocess.Popen(
        [kubectl.program, "logs", "-f", "long"],
        env={"KUBECONFIG": kubectl.kubeconfig, "HOME": str(kubectl.home)},
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        lines = [following.stdout.readline() for _ in range(160001)]
        assert lines == [*(f"{number:0100}\n" for number in range(1, 160001)), "last\n"]
        kubectl("delete", "pod", "long", "--wait=false")
        assert following.stdout.read() == ""
        assert following.wait(30) == 0


def test_refusals(kubectl: Kubectl) -> None:
    path = "/api/v1/namespaces/default/pods"

    both = kubectl.fails("get", "--raw", f"{path}/talk/log?sinceSeconds=5&sinceTime=2020-01-01T00:00:00Z")
    assert "at most one of `sinceTime` or `sinceSeconds` may be specified" in both
    negative = kubectl.fails("get", "--raw", f"{path}/talk/log?tailLines=-1")
    assert (
        'PodLogOptions "talk" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0' in negative
    )
    for query, words in (("limitBytes=0", "must be greater than 0"), ("sinceSeconds=0", "must be greater than 0")):
        assert words in kubectl.fails("get", "--raw", f"{path}/talk/log?{query}")
    assert "a container name must be specified for pod two, choose one of: [a b]" in kubectl.fails(
        "get", "--raw", f"{path}/two/log"
    )
    assert "container nothing is not valid for pod two" in kubectl.fails("logs", "two", "-c", "nothing")
    assert 'pods "nobody" not found' in kubectl.fails("logs", "nobody")
    assert re.search(
        'container "a" in pod "lost" is waiting to start: (image can\'t be pulled|trying and failing to pull image)',
        kubectl.fails("logs", "lost"),
    )


def test_what_goes_leaves_no_files(kubectl: Kubectl, cluster: Lab) -> None:
    supervisor = cluster.ledger()["supervisor"][0]
    logs = Path(f"/proc/{supervisor}/root/run/log/pods")
    kubectl("apply", "-f", "-", feed=yaml.safe_dump(pod("brief", "echo here; sleep 1000")))
    until(lambda: kubectl("logs", "brief") == "here\n")
    assert [path.name for path in logs.glob("default_brief_*/*/*.log")] != []
    kubectl("delete", "pod", "brief")
    until(lambda: list(logs.glob("default_brief_*")) == [])
