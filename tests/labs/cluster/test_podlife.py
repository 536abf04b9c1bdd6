"""How containers begin, change and end in a running cluster, through kubectl: hooks, sidecars, restarts, failures."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from labs.cluster.containerworker import RestartBackOff
from tests.labs.kubectl import Kubectl, programs
from tests.labs.lab import Lab


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with Lab() as up:
        yield up


@pytest.fixture(scope="module")
def kubectl(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(programs()[0], cluster.kubeconfig(), tmp_path_factory.mktemp("home"), "default")


@pytest.fixture
def name() -> str:
    return f"pod-{secrets.token_hex(4)}"


def pod(name: str, container: dict[str, Any] | None = None, **spec: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "client", **(container or {})}],
            **spec,
        },
    }
    return yaml.safe_dump(document)


def until(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + 20 * patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start(kubectl: Kubectl, name: str, patience: float, feed: str) -> None:
    kubectl("apply", "-f", "-", feed=feed)
    kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")


def state(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """The status of a pod's first container."""
    statuses = json.loads(kubectl("get", "pod", name, "-o", "json"))["status"].get("containerStatuses") or [{}]
    found: dict[str, Any] = statuses[0]
    return found


def events(kubectl: Kubectl, name: str, reason: str) -> set[str]:
    found = kubectl("get", "events", "--field-selector", f"involvedObject.name={name},reason={reason}", "-o", "json")
    return {item["message"] for item in json.loads(found)["items"]}


SHELL = ["sh", "-c"]
STAY = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


@pytest.mark.root
class TestHooks:
    def test_a_container_runs_when_its_post_start_hook_is_through(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        hook = {
            "exec": {"command": [*SHELL, "until test -e /run/go; do sleep 0.1; done; cat /proc/1/comm >/run/hooked"]}
        }
        kubectl("apply", "-f", "-", feed=pod(name, {"lifecycle": {"postStart": hook}}))
        until(lambda: bool(events(kubectl, name, "Started")), patience)
        assert state(kubectl, name)["state"] == {"waiting": {"reason": "ContainerCreating"}}
        cluster.exec(f"default/{name}", "touch", "/run/go")
        kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")
        assert kubectl("exec", name, "--", "cat", "/run/hooked") == "main\n"

    def test_a_post_start_hook_that_fails_ends_the_container(
        self, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        hook = {"exec": {"command": [*SHELL, "echo no luck; exit 3"]}}
        kubectl("apply", "-f", "-", feed=pod(name, {"lifecycle": {"postStart": hook}}))
        until(lambda: bool(events(kubectl, name, "BackOff")), patience)
        assert events(kubectl, name, "FailedPostStartHook") == {"PostStartHook failed"}
        assert events(kubectl, name, "Killing") == {"FailedPostStartHook"}
        assert state(kubectl, name)["restartCount"] == 1
        assert kubectl.rows("get", "pod", name)[1][1:3] == ["0/1", "CrashLoopBackOff"]

    def test_the_words_of_a_hook_that_fails(self, kubectl: Kubectl, name: str, patience: float) -> None:
        hook = {"exec": {"command": [*SHELL, "echo no luck; exit 3"]}}
        kubectl("apply", "-f", "-", feed=pod(name, {"lifecycle": {"postStart": hook}}))
        seen: list[str] = []

        def told() -> bool:
            waiting = state(kubectl, name).get("state", {}).get("waiting", {})
            if waiting.get("reason") == "PostStartHookError":
                seen.append(waiting["message"])
            return bool(seen) or state(kubectl, name).get("restartCount", 0) > 0

        until(told, patience)
        if seen:  # it is shown until the restart, which is at once
            uid = kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
            where = f'for Container "main" in Pod "{name}_default({uid})"'
            assert seen[0] == (
                f"Exec lifecycle hook ([sh -c echo no luck; exit 3]) {where} failed - error: "
                "command 'sh -c echo no luck; exit 3' exited with 3: no luck\n, message: \"no luck\\n\""
            )

    def test_a_pre_stop_hook_runs_before_the_end_and_has_a_part_of_its_time(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        place = f"/srv/{name}"
        tell = [*SHELL, "date +%s.%N >/log/stopping; sleep 1"]
        main = {
            "command": [*SHELL, "trap 'date +%s.%N >/log/stopped; exit 0' TERM; while :; do sleep 0.1; done"],
            "lifecycle": {"preStop": {"exec": {"command": tell}}},
            "volumeMounts": [{"name": "log", "mountPath": "/log"}],
        }
        volumes = [{"name": "log", "hostPath": {"path": place}}]
        more = {"volumes": volumes, "terminationGracePeriodSeconds": 20, "nodeName": "node1"}
        start(kubectl, name, patience, pod(name, main, **more))
        kubectl("delete", "pod", name)
        lines = cluster.exec("node1", "cat", f"{place}/stopping", f"{place}/stopped").stdout.split()
        stopping, stopped = (float(line) for line in lines)
        assert 1.0 <= stopped - stopping < 10
        assert events(kubectl, name, "FailedPreStopHook") == set()

    def test_a_pre_stop_hook_may_fail_or_take_too_long(self, kubectl: Kubectl, name: str, patience: float) -> None:
        fails, slow = f"{name}-a", f"{name}-b"
        hook = {"httpGet": {"port": 81, "path": "/bye"}}
        start(kubectl, fails, patience, pod(fails, {"lifecycle": {"preStop": hook}}, terminationGracePeriodSeconds=9))
        start(
            kubectl,
            slow,
            patience,
            pod(slow, {"lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}, terminationGracePeriodSeconds=60),
        )
        began = time.monotonic()
        kubectl("delete", "pod", fails)
        kubectl("delete", "pod", slow, "--grace-period=1")
        assert time.monotonic() - began < 15 * patience
        assert events(kubectl, fails, "FailedPreStopHook") == {"PreStopHook failed"}


@pytest.mark.root
class TestChanges:
    def test_another_image_restarts_the_container(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        start(kubectl, name, patience, pod(name, {"ports": [{"containerPort": 8080}]}))
        kubectl("set", "image", f"pod/{name}", "main=http-echo")
        until(lambda: state(kubectl, name)["restartCount"] == 1, patience)
        kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")
        assert events(kubectl, name, "Killing") == {"Container main definition changed, will be restarted"}
        assert state(kubectl, name)["image"] == "http-echo"
        address = kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")
        assert cluster.get("default/client", f"http://{address}:8080/")["pod"] == name

    def test_another_image_ends_the_wait_for_an_unknown_one(self, kubectl: Kubectl, name: str, patience: float) -> None:
        kubectl("apply", "-f", "-", feed=pod(name, {"image": "none"}))
        until(lambda: kubectl.rows("get", "pod", name)[1][2] == "ErrImagePull", patience)
        kubectl("set", "image", f"pod/{name}", "main=client")
        kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={int(20 * patience)}s")
        assert state(kubectl, name)["restartCount"] == 0


@pytest.mark.root
class TestEnds:
    def test_a_finished_pod_says_that_it_is_completed(self, kubectl: Kubectl, name: str, patience: float) -> None:
        kubectl("apply", "-f", "-", feed=pod(name, {"command": ["true"]}, restartPolicy="Never"))
        until(lambda: kubectl.rows("get", "pod", name)[1][1:3] == ["0/1", "Completed"], patience)
        conditions = json.loads(kubectl("get", "pod", name, "-o", "json"))["status"]["conditions"]
        reasons = {entry["type"]: (entry["status"], entry.get("reason")) for entry in conditions}
        assert reasons["Ready"] == reasons["ContainersReady"] == ("False", "PodCompleted")
        assert reasons["Initialized"] == ("True", "PodCompleted")
        assert state(kubectl, name)["lastState"] == {}

    def test_a_pod_that_is_active_for_too_long_fails(self, kubectl: Kubectl, name: str, patience: float) -> None:
        kubectl("apply", "-f", "-", feed=pod(name, activeDeadlineSeconds=2))
        path = "jsonpath={.status.phase} {.status.reason} {.status.containerStatuses[0].ready}"
        until(lambda: kubectl("get", "pod", name, "-o", path) == "Failed DeadlineExceeded false", patience)
        told = kubectl("describe", "pod", name)
        assert "Pod was active on the node longer than the specified deadline" in told
        assert "Normal  DeadlineExceeded" in " ".join(told.split()).replace("Normal ", "Normal  ")
        kubectl("delete", "pod", name, "--timeout=30s")

    def test_what_a_container_leaves_in_words(self, kubectl: Kubectl, name: str, patience: float) -> None:
        """The file that is mounted for it; or, if the pod wants that, the end of its log when it failed."""
        asked, policy = f"{name}-a", {"terminationMessagePolicy": "FallbackToLogsOnError"}
        leave = {"command": [*SHELL, "echo noise; printf 'too %s' tired >/dev/termination-log; exit 4"], **policy}
        kubectl("apply", "-f", "-", feed=pod(name, leave, restartPolicy="Never"))
        say = {"command": [*SHELL, "echo first; echo last words >&2; exit 5"], **policy}
        kubectl("apply", "-f", "-", feed=pod(asked, say, restartPolicy="Never"))

        def message(which: str) -> str:
            return str(state(kubectl, which)["state"].get("terminated", {}).get("message", ""))

        until(lambda: message(name) == "too tired", patience)
        until(lambda: message(asked) == "first\nlast words\n", patience)

    def test_a_program_that_is_not_there(self, kubectl: Kubectl, name: str, patience: float) -> None:
        once, again = f"{name}-a", f"{name}-b"
        kubectl("apply", "-f", "-", feed=pod(once, {"command": ["no-such-program"]}, restartPolicy="Never"))
        kubectl("apply", "-f", "-", feed=pod(again, {"command": ["/no/such", "x"]}))
        words = (
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
            "runc create failed: unable to start container process: exec: {}: unknown"
        )
        until(lambda: kubectl.rows("get", "pod", once)[1][2] == "StartError", patience)
        ended = state(kubectl, once)["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"], ended["startedAt"]) == (128, "StartError", "1970-01-01T00:00:00Z")
        assert ended["message"] == words.format('"no-such-program": executable file not found in $PATH')
        assert kubectl("get", "pod", once, "-o", "jsonpath={.status.phase}") == "Failed"
        until(lambda: kubectl.rows("get", "pod", again)[1][2] == "CrashLoopBackOff", patience)
        message = words.format('"/no/such": stat /no/such: no such file or directory')
        assert events(kubectl, again, "Failed") == {f"Error: {message}"}
        assert events(kubectl, again, "Started") == set()
        found = state(kubectl, again)
        assert (found["restartCount"], found["lastState"]["terminated"]["message"]) == (1, message)
        assert found["state"]["waiting"]["message"].startswith("back-off 10s restarting failed container=main pod=")


class TestUsers:
    def test_commands_run_as_the_user_that_is_asked_for(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        script = "id > /dev/termination-log; id; echo > /dev/stdout; echo mine > /cache/a; echo ~; sleep 60"
        volume = [{"name": "cache", "mountPath": "/cache"}]
        container = {"command": ["sh", "-c", script], "securityContext": {"runAsGroup": 7}, "volumeMounts": volume}
        probe = {"exec": {"command": ["sh", "-c", "test $(id -u) = 1234"]}, "periodSeconds": 1}
        context = {"runAsUser": 1234, "runAsGroup": 5, "fsGroup": 9, "supplementalGroups": [8]}
        volumes = [{"name": "cache", "emptyDir": {}}]
        feed = pod(name, {**container, "readinessProbe": probe}, securityContext=context, volumes=volumes)
        start(kubectl, name, patience, feed)
        told = "uid=1234 gid=7 groups=7,8,9"
        until(lambda: "mine" in kubectl("exec", name, "--", "cat", "/cache/a"), patience)
        assert re.sub(r"\(\w+\)", "", kubectl("logs", name)) == f"{told}\n\n/\n"
        assert re.sub(r"\(\w+\)", "", kubectl("exec", name, "--", "id")) == f"{told}\n"
        assert "Permission denied" in kubectl.fails("exec", name, "--", "cat", "/etc/shadow")
        assert kubectl("exec", name, "--", "stat", "-c", "%u:%g", "/cache/a") == "1234:7\n"
        kubectl("delete", "pod", name, "--timeout=30s")

    def test_numbers_that_are_nobodys(self, kubectl: Kubectl, name: str) -> None:
        words = kubectl.fails("apply", "-f", "-", feed=pod(name, {"securityContext": {"runAsUser": -1}}))
        assert (
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647" in words
        )


class TestHostPID:
    def test_a_pod_sees_its_nodes_processes_and_can_enter_their_files(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        """As `nsenter` in a privileged pod does; and with the pod, all that it has started goes."""
        script = "exec 3</var/run/secrets/kubernetes.io/serviceaccount; sleep 4711 & exec nsenter -t 1 -m -- sleep 4712"
        start(kubectl, name, patience, pod(name, {"command": ["sh", "-c", script]}, hostPID=True))
        spec = json.loads(kubectl("get", "pod", name, "-o", "json"))["spec"]
        node = spec["nodeName"]

        def sleeping() -> dict[str, str]:
            """The node's processes that sleep so long, by their last word."""
            lines = cluster.exec(node, "sh", "-c", "pgrep -a sleep || true").stdout.splitlines()
            return {words[-1]: words[0] for line in lines if (words := line.split())[-1] in ("4711", "4712")}

        until(lambda: len(sleeping()) == 2, patience)
        inside = kubectl("exec", name, "--", "cat", "/proc/1/comm")
        assert inside == cluster.exec(node, "cat", "/proc/1/comm").stdout
        entered = f"/proc/{sleeping()['4712']}"
        assert cluster.exec(node, "readlink", f"{entered}/ns/mnt", "/proc/1/ns/mnt").stdout.split()[0] == (
            cluster.exec(node, "readlink", "/proc/1/ns/mnt").stdout.strip()
        )
        assert cluster.exec(node, "cat", f"{entered}/fd/3/token").stdout.count(".") == 2
        kubectl("delete", "pod", name)
        until(lambda: not sleeping(), patience)


def sidecar(name: str, command: str) -> dict[str, Any]:
    mounts = [{"name": "log", "mountPath": "/log"}]
    return {
        "name": name,
        "image": "client",
        "command": [*SHELL, command],
        "restartPolicy": "Always",
        "volumeMounts": mounts,
    }


@pytest.mark.root
class TestSidecars:
    def test_a_sidecar_starts_before_the_containers_and_ends_after_them(
        self, cluster: Lab, kubectl: Kubectl, name: str, patience: float
    ) -> None:
        place = f"/srv/{name}"
        say = (
            "echo {0} >>/log/all; trap 'sleep 0.2; echo {0} ends >>/log/all; exit 0' TERM; while :; do sleep 0.1; done"
        )
        probe = {"exec": {"command": ["test", "-e", "/log/all"]}, "periodSeconds": 1}
        first = {**sidecar("first", say.format("first")), "startupProbe": probe}
        step = {**sidecar("step", "echo step >>/log/all")}
        del step["restartPolicy"]
        main = {k: v for k, v in sidecar("main", say.format("main")).items() if k not in ("restartPolicy", "name")}
        feed = pod(
            name,
            main,
            initContainers=[first, step, sidecar("second", say.format("second"))],
            volumes=[{"name": "log", "hostPath": {"path": place}}],
            nodeName="node1",
            terminationGracePeriodSeconds=20,
        )
        start(kubectl, name, patience, feed)
        assert kubectl.rows("get", "pod", name)[1][1:3] == ["3/3", "Running"]
        until(lambda: "main" in cluster.exec("node1", "cat", f"{place}/all").stdout, patience)
        kubectl("delete", "pod", name)
        order = ["first", "step", "second", "main", "main ends", "second ends", "first ends"]
        assert cluster.exec("node1", "cat", f"{place}/all").stdout.splitlines() == order

    def test_a_sidecar_does_not_keep_a_pod_from_completing(self, kubectl: Kubectl, name: str, patience: float) -> None:
        side = {**sidecar("side", STAY), "volumeMounts": []}
        feed = pod(name, {"command": ["sleep", "1"]}, restartPolicy="Never", initContainers=[side])
        kubectl("apply", "-f", "-", feed=feed)
        until(lambda: kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}") == "Succeeded", patience)
        until(lambda: kubectl.rows("get", "pod", name)[1][1:3] == ["0/2", "Completed"], patience)
        assert events(kubectl, name, "Killing") == {"Stopping container side"}


def test_pauses_before_restarts_double_up_to_five_minutes_and_begin_anew_after_ten() -> None:
    """Kubelet's: none, 10 s, 20 s, 40 s, …"""
    back_off = RestartBackOff()
    assert [back_off.after(1.0) for _ in range(9)] == [0, 10, 20, 40, 80, 160, 300, 300, 300]
    assert [back_off.after(seconds) for seconds in (600.0, 601.0, 1.0, 1.0)] == [300, 0, 10, 20]
