"""Where packets come from and whose rules count: origins, neighbours, the nearest rules."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracer.networks import SERVICE, Namespace, link, namespaces
from tests.tracer.probe.conftest import Net
from tests.tracer.probe.rules_for import BACKENDS, kube_service, restore
from tracer import netns, procfs
from tracer.destination import Destination, parse
from tracer.errors import UsageError
from tracer.names.model import PodName
from tracer.probe import origin
from tracer.probe.neighbours import neighbours
from tracer.probe.origin import Origin, find
from tracer.probe.prediction import Rulebook, locate, predict

pytestmark = pytest.mark.root


@contextlib.contextmanager
def host(namespace: Namespace, name: str) -> Iterator[int]:
    """A process with a hostname of its own in a namespace, as the first of a container has."""
    script = f"echo {name} >/proc/sys/kernel/hostname; exec sleep 600"
    process = subprocess.Popen(["nsenter", f"--net={namespace.path}", "unshare", "--uts", "sh", "-c", script])
    try:
        deadline = time.monotonic() + 10
        while procfs.hostname(process.pid) != name:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces are looked for anew, and not once a second."""
    monkeypatch.setattr(netns, "RESCAN_SECONDS", 0.0)


class TestOrigin:
    def test_nothing_said_is_here(self) -> None:
        assert find(None) == Origin(None, netns.own())

    def test_a_namespace_by_path_and_by_process(self) -> None:
        with namespaces(1) as (one,), host(one, "x") as pid:
            assert find(one.path) == Origin(one.path, one.inode, one.path)
            assert find(str(pid)) == Origin(str(pid), one.inode, f"/proc/{pid}/ns/net")

    def test_a_node_by_its_hostname(self, forgetful: None) -> None:
        name = f"node-{secrets.token_hex(4)}"
        with namespaces(2) as (one, other), host(one, name):
            found = find(name)
            assert (found.text, found.inode, found.pod) == (name, one.inode, None)
            assert found.path is not None and netns.inode(found.path) == one.inode
            with host(other, name), pytest.raises(UsageError, match=f"there are 2 of the name {name}") as caught:
                find(name)
            assert (caught.value.hint or "").startswith("say which by its path: --from /proc/")

    def test_a_pod_by_its_name(self, monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
        with namespaces(2) as (one, other), host(one, "x") as pid, host(other, "y"):
            pods = {(one.inode, PodName("shop", "web-0")), (other.inode, PodName("shop", "web-1"))}
            monkeypatch.setattr(origin, "local_pods", lambda: pods)
            found = find("shop/web-0")
            assert found == Origin("shop/web-0", one.inode, f"/proc/{pid}/ns/net", PodName("shop", "web-0"))
            with pytest.raises(UsageError, match="no pod shop/web-2 on this machine"):
                find("shop/web-2")
            pods.add((other.inode, PodName("shop", "web-0")))
            with pytest.raises(UsageError, match="there are 2 of the name shop/web-0"):
                find("shop/web-0")

    @pytest.mark.parametrize("text", ["no-such-namespace", "/no/such/path", "./x", "99999999", "Shop/web"])
    def test_nothing_of_the_kind(self, text: str) -> None:
        with pytest.raises(UsageError):
            find(text)


class TestNeighbours:
    def test_the_other_ends_of_links(self, net: Net) -> None:
        client, router, server = net
        known = {one.inode: one.path for one in net}
        assert neighbours(client.path, known) == [router.inode]
        assert sorted(neighbours(router.path, known)) == sorted([client.inode, server.inode])

    def test_none_that_is_not_known(self, net: Net) -> None:
        client, _, server = net
        assert neighbours(client.path, {server.inode: server.path}) == []

    def test_no_links(self) -> None:
        with namespaces(2) as (one, other):
            assert neighbours(one.path, {other.inode: other.path, 7: "/no/such"}) == []

    def test_asking_gives_out_no_ids(self, net: Net) -> None:
        client, _, _ = net
        known = {one.inode: one.path for one in net}
        before = client.sh("ip netns list-id")
        neighbours(client.path, known)
        assert client.sh("ip netns list-id") == before
        assert len(before.splitlines()) == 1


class TestRules:
    def test_the_nodes_rules_are_the_nearest(self, net: Net) -> None:
        """Another cluster of the machine has a Service of the same name at another address."""
        client, router, server = net
        kube_service(router, *BACKENDS)
        with namespaces(2) as (pod, node):
            link(pod, "eth0", node, "pod")
            lines = [":KUBE-SERVICES -", ":KUBE-SVC-X -", "-A OUTPUT -j KUBE-SERVICES"]
            comment = '-m comment --comment "shop/web:http cluster IP"'
            lines += [f"-A KUBE-SERVICES -d 10.97.0.7/32 -p tcp {comment} -m tcp --dport 81 -j KUBE-SVC-X"]
            lines += ["-A KUBE-SVC-X -p tcp -m tcp -j DNAT --to-destination 10.1.1.1:80"]
            restore(node, False, "nat", lines)
            every = [client, router, server, pod, node]
            paths = {one.inode: one.path for one in every}

            def located(one: Namespace) -> tuple[str, int]:
                found = locate(parse("shop/web:http"), Rulebook(Origin("x", one.inode, one.path), paths))
                return found.ip, found.port

            assert located(client) == located(router) == located(server) == (SERVICE, 80)
            assert located(pod) == located(node) == ("10.97.0.7", 81)
            with namespaces(1) as (elsewhere,), pytest.raises(UsageError, match="several clusters of this machine"):
                located(elsewhere)

    def test_no_services_at_all(self, net: Net) -> None:
        client, _, _ = net
        book = Rulebook(Origin("x", client.inode, client.path), {one.inode: one.path for one in net})
        with pytest.raises(UsageError, match="no rules on this machine hold a Service"):
            locate(parse("shop/web:http"), book)
        assert locate(parse("10.1.1.1:80"), book) == Destination("10.1.1.1:80", "10.1.1.1", 80, "TCP")

    def test_a_change_is_seen(self, net: Net) -> None:
        client, router, _ = net
        kube_service(router, *BACKENDS)
        book = Rulebook(Origin("x", client.inode, client.path), {one.inode: one.path for one in net})
        first = book.of(router.inode)
        assert book.renewed(router.inode) is None
        router.sh("iptables -A FORWARD -s 192.0.2.1 -j DROP")
        second = book.renewed(router.inode)
        assert second is not None and second.state != first.state
        assert book.of(router.inode) is second

    def test_the_source_decides(self, net: Net) -> None:
        client, router, _ = net
        kube_service(router, *BACKENDS)
        restore(router, False, "nat", [f"-I PREROUTING -s 10.0.1.9 -d {SERVICE} -p tcp -j DNAT --to 10.0.2.9:9"])
        book = Rulebook(Origin("x", client.inode, client.path), {one.inode: one.path for one in net})
        destination = locate(parse("shop/web:http"), book)
        rules = book.of(router.inode)
        thirds = {(backend, 8000): pytest.approx(1 / 3) for backend in BACKENDS}
        assert predict(rules, destination, "10.0.1.2").shares == thirds
        assert predict(rules, destination, "10.0.1.1").shares == thirds
        assert predict(rules, destination, "10.0.1.9").shares == {("10.0.2.9", 9): 1.0}


def test_nothing_holds_a_namespace_afterwards() -> None:
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with namespaces(1) as (one,):
        neighbours(one.path, {one.inode: one.path})
        find(one.path)
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    assert not Path(one.path).exists()
