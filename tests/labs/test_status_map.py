"""What `k8snet-lab status` draws: everything, within the width of the terminal, and nothing that a terminal obeys; and
what `up` shows meanwhile."""

from __future__ import annotations

import copy
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import termios
from typing import Any

import pytest
from rich.console import Console

from labs.cluster import control
from labs.cluster.control import FORMAT
from labs.cluster.statusmap import count_endpoints, draw
from tests.labs.lab import REPOSITORY, Lab
from tracer.errors import K8snetError

PORT = {"name": None, "protocol": "TCP", "port": 80, "target_port": 8080, "node_port": 30080}


def service(name: str, *endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    about = {"namespace": "shop", "name": name, "type": "ClusterIP", "cluster_ips": ["10.96.0.7"], "ports": [PORT]}
    return {**about, "endpoints": list(endpoints), **more}


def endpoint(address: str, pod: str | None = None, ready: bool = True) -> dict[str, Any]:
    return {"addresses": [address], "pod": pod, "ready": ready}


def pod(name: str, *addresses: str, **more: Any) -> dict[str, Any]:
    about = {"namespace": "shop", "name": name, "node": "node1", "addresses": list(addresses)}
    return {**about, "host_network": False, "ready": True, "restarts": 0, "pid": 12345, **more}


BALANCED = {
    "type": "LoadBalancer",
    "cluster_ips": ["10.96.0.8", "fd00:10:96::1234"],
    "external_ips": ["192.0.2.77"],
    "load_balancer_ips": ["203.0.113.1", "2001:db8:113::1"],
}
NODE = {
    "name": "node1",
    "addresses": ["172.18.0.2", "fc00:f853:ccd:e793::2"],
    "pod_cidrs": ["10.244.0.0/24", "fd00:10:244::/64"],
    "pid": 7,
}
MANAGER = {"namespace": "kube-system", "name": "kube-controller-manager-node1", "node": "node1", "ready": True}
DOCUMENT: dict[str, Any] = {
    "format": FORMAT,
    "name": "it",
    "ready": True,
    "unready": ["pod shop/web: Error"],
    "options": {"proxy": "nftables", "cni": "vxlan", "ip_family": "dual"},
    "nodes": [NODE],
    "hosts": [{"name": "client-host", "addresses": ["198.51.100.2", "2001:db8:51::2"], "pid": 8}],
    "control_plane": [MANAGER],
    "pods": [
        pod("web\x1b[31m", "10.244.0.2", ready=False, restarts=3, pid=None),
        pod("a-long-name-of-a-deployment-that-goes-on-544c4c4744-hv9mt", "10.244.0.3", "fd00:10:244::3"),
    ],
    "services": [
        service("a", endpoint("10.244.0.2", "web", ready=False), endpoint("10.244.0.3", "other")),
        service("nobody"),
        service("balanced", endpoint("fd00:10:244::3", "other"), endpoint("10.244.0.3", "other"), **BALANCED),
        service("pending", type="LoadBalancer", load_balancer_ips=[]),
        service("many", *(endpoint(f"10.244.0.{number}", f"web-{number}") for number in range(2, 52))),
        service("each", cluster_ips=["None"]),
        service("elsewhere", type="ExternalName", cluster_ips=[], ports=[]),
    ],
    "components": [
        {"name": "garbage collector", "running": True, "failures": 0, "error": ""},
        {"name": "scheduler", "running": False, "failures": 2, "error": "boom\x1b[2J"},
    ],
    "notes": ["no cgroups"],
}


def drawn(document: dict[str, Any], columns: int, color: bool = False) -> str:
    file = io.StringIO()
    system: Any = "truecolor" if color else None
    Console(width=columns, file=file, force_terminal=color, color_system=system).print(draw(document))
    return file.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_map_shows_everything_within_the_width_and_escapes_what_it_shows(columns: int) -> None:
    text = drawn(DOCUMENT, columns)
    assert {len(line) for line in text.splitlines() if line[0] in "│╭╰"} == {columns}
    assert max(map(len, text.splitlines())) == columns
    assert "\x1b" not in text
    words = " ".join(text.replace("│", " ").split())
    for expected in (
        *("○ it proxy nftables · cni vxlan · ip family dual", "pod shop/web: Error"),
        *("node1 172.18.0.2, fc00:f853:ccd:e793::2 pid 7", "pods 10.244.0.0/24, fd00:10:244::/64"),
        *("restarted 3×", "client-host 198.51.100.2, 2001:db8:51::2 pid 8", "outside of the cluster"),
        *("80/TCP → 8080", "node port 30080", "1/2 10.244.0.2", "50/50", "44 more", "no endpoints"),
        *("LoadBalancer", "192.0.2.77 ext", "203.0.113.1 LB", "2001:db8:113::1 LB", "1/1 10.244.0.3", "headless"),
        *("ExternalName", "no LB address", "● garbage collector", "○ scheduler", "scheduler failed 2×: boom"),
        *("no cgroups", r"shop/web\x1b[31m", "supervisor"),
    ):
        assert expected in words, expected
    if columns == 120:  # in narrower ones long names go on in the next line
        assert "kube-system/kube-controller-manager-node1" in words


def test_colours_only_where_they_are_wanted() -> None:
    assert "\x1b[" in drawn(DOCUMENT, 120, color=True)
    assert "\x1b" not in drawn(DOCUMENT, 120)


def test_a_pod_with_two_addresses_counts_once() -> None:
    both = [endpoint("10.244.0.3", "one"), endpoint("fd00::3", "one"), endpoint("10.244.0.4", "two", ready=False)]
    assert count_endpoints(service("x", *both, endpoint("192.0.2.9"))) == (2, 3)


class TestAnotherVersion:
    """A cluster that an older k8snet started goes on running when k8snet is replaced."""

    def answer(self, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> None:
        monkeypatch.setattr(control, "ask", lambda _name, _request: {"supervisor": 1, **copy.deepcopy(document)})

    def test_what_it_does_not_tell_is_left_out_with_a_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        unknown = ("format", "hosts", "control_plane", "components", "notes")
        self.answer(monkeypatch, {key: value for key, value in DOCUMENT.items() if key not in unknown})
        document = control.status("it")
        assert (document["hosts"], document["control_plane"], document["components"]) == ([], [], [])
        (note,) = document["notes"]
        assert "another version of k8snet" in note
        assert note in drawn(document, 120)

    def test_what_can_not_be_understood_is_an_error_with_a_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer(monkeypatch, {"name": "it", "machines": []})
        with pytest.raises(K8snetError, match="cluster it was started by another version of k8snet") as error:
            control.status("it")
        assert error.value.hint == "k8snet-lab down --name it, then up again"


@pytest.mark.root
class TestRunning:
    def test_status_tells_of_everything(self, cluster: Lab) -> None:
        document = cluster.status()
        assert document["format"] == FORMAT
        control_plane = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        assert [pod["name"] for pod in document["control_plane"]] == [f"{name}-node1" for name in control_plane]
        assert all(pod["ready"] for pod in document["control_plane"])
        assert [host["name"] for host in document["hosts"]] == ["client-host"]
        running = {component["name"]: component["running"] for component in document["components"]}
        assert {"scheduler", "endpointslices", "load balancers", "node1", "node2"} <= running.keys()
        assert [component for component in document["components"] if component["failures"]] == []
        door = next(one for one in document["services"] if one["name"] == "door")
        assert (door["type"], door["external_traffic_policy"], door["session_affinity"]) == (
            *("NodePort", "Cluster", "None"),
        )
        assert count_endpoints(door) == (3, 3)

    @pytest.mark.parametrize(
        ("more", "coloured"), [({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False), ({}, False)]
    )
    def test_the_map_fits_a_terminal_of_80_columns(self, cluster: Lab, more: dict[str, str], coloured: bool) -> None:
        plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        text = cluster.run("status", env={**plain, "COLUMNS": "80", **more}).stdout
        assert ("\x1b[" in text) is coloured
        if not coloured:
            assert {len(line) for line in text.splitlines() if line[0] in "│╭╰"} == {80}
            assert "10.96.100.50" in text

    def test_up_shows_what_it_does_in_one_line_of_a_terminal(self) -> None:
        cluster = Lab()
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        try:
            with subprocess.Popen(cluster.command("up"), cwd=REPOSITORY, stderr=theirs, env=environment) as process:
                os.close(theirs)
                screen = b""
                while data := _read(ours):
                    screen += data
            assert process.returncode == 0
            text = screen.decode()
            # rich draws some ten times a second, and a step that is over sooner is not seen.
            assert any(step in text for step in ("namespaces", "nodes", "control plane", "pods"))
            assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
            assert f"cluster {cluster.name} is up in " in text.rstrip().splitlines()[-1]
            assert text.count("\n") <= 4, "one line that changes"
        finally:
            os.close(ours)
            cluster.__exit__()

    def test_up_says_one_line_where_there_is_no_terminal(self) -> None:
        cluster = Lab()
        try:
            done = cluster.run("up")
            assert done.stdout == ""
            line, *notes = done.stderr.splitlines()
            assert line.startswith(f"cluster {cluster.name} is up in ")
            assert [note for note in notes if not note.startswith("note: ")] == []
            assert "\x1b" not in done.stderr
            assert json.loads(cluster.run("status", "-o", "json").stdout)["ready"]
        finally:
            cluster.__exit__()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: whoever wrote to the terminal has ended
        return b""
