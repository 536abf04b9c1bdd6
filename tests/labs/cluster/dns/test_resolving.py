"""Names as programs in pods resolve them, in a cluster of both families: the C library, curl, Python and dig."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.labs.kubectl import Kubectl
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

MANIFEST = Path(__file__).with_name("names.yaml")
ENDING = "names.svc.cluster.local"
PYTHON = """
import json, socket, sys
answers = {}
for name in sys.argv[1:]:
    try:
        found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        answers[name] = sorted({entry[4][0] for entry in found})
    except socket.gaierror as error:
        answers[name] = [error.strerror]
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Names:
    """A running cluster with names.yaml. `pods`: the addresses of that namespace's pods; `servers`, `servers6`: of
    CoreDNS."""

    cluster: Lab
    pods: dict[str, list[str]]
    servers: list[str]
    servers6: list[str]

    def exec(self, pod: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod."""
        return self.cluster.exec(f"names/{pod}", *command, check=check)

    def dig(self, *arguments: str) -> str:
        """What dig prints in the pod `client`."""
        return self.exec("client", "dig", "+time=2", "+tries=3", *arguments).stdout

    def answer(self, *arguments: str) -> list[str]:
        """The records of an answer: type and data."""
        lines = self.dig("+noall", "+answer", *arguments).splitlines()
        return sorted(re.sub(r"\s+", " ", line).partition(" IN ")[2] for line in lines)

    def ip(self, pod: str, family: int = 4) -> str:
        """A pod's address."""
        return next(ip for ip in self.pods[pod] if (":" in ip) == (family == 6))

    def counted(self, pod: str, name: str) -> tuple[Counter[str], int]:
        """What both servers answer while a pod's C library looks for the IPv4 addresses of a name: how many queries by
        rcode, and by zone and type; and getent's exit status."""
        urls = [f"http://{server}:9153/metrics" for server in self.servers]
        look = f"curl -sS {' '.join(urls)}"
        script = f"{look}; echo =; getent ahostsv4 {name} >/dev/null; echo $?=; {look}"
        before, status, after = self.exec(pod, "sh", "-c", script).stdout.split("=\n")
        return counters(after) - counters(before), int(status)


def counters(text: str) -> Counter[str]:
    """Prometheus's text of one or more servers, as what `Names.counted` tells."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if line.startswith("coredns_dns_requests_total"):
            found[f"{labels['zone']} {labels['type']}"] += int(float(line.rpartition(" ")[2]))
        elif line.startswith("coredns_dns_responses_total"):
            found[labels["rcode"]] += int(float(line.rpartition(" ")[2]))
    return found


def kubectl_of(cluster: Lab) -> Kubectl:
    return Kubectl(shutil.which("kubectl") or "", cluster.kubeconfig(), Path("/run"), "names")


def addresses(kubectl: Kubectl, namespace: str) -> dict[str, list[str]]:
    document = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))
    return {pod["metadata"]["name"]: [ip["ip"] for ip in pod["status"]["podIPs"]] for pod in document["items"]}


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    """A cluster of both families; the pod `third` is never ready."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl; to run it: scripts/setup")
    with Lab(("--ip-family", "dual")) as running:
        kubectl = kubectl_of(running)
        kubectl("apply", "-f", str(MANIFEST))
        kubectl("wait", "--for=condition=Ready", "pod/first", "pod/second", "pod/client", "pod/one-dot")
        kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/third")
        servers = [ips for name, ips in addresses(kubectl, "kube-system").items() if name.startswith("coredns-")]
        assert len(servers) == 2
        found = Names(running, addresses(kubectl, "names"), [ip for ip, _ in servers], [ip for _, ip in servers])
        until_all_is_told(found)
        yield found


def until_all_is_told(names: Names) -> None:
    """Wait until both servers know the endpoints of both headless Services."""
    deadline = time.monotonic() + 30
    asked = [
        word
        for server in names.servers
        for name in ("peers", "all-peers")
        for word in (f"@{server}", f"{name}.{ENDING}")
    ]
    while len(told := names.answer(*asked)) != 2 * (2 + 3):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


class TestRecords:
    def test_a_pod_with_hostname_and_subdomain_has_a_name_of_its_own(self, names: Names) -> None:
        first = {family: names.ip("first", family) for family in (4, 6)}
        assert names.answer(f"peer-1.peers.{ENDING}") == [f"A {first[4]}"]
        assert names.answer(f"peer-1.peers.{ENDING}", "AAAA") == [f"AAAA {first[6]}"]
        assert names.exec("first", "hostname", "-f").stdout == f"peer-1.peers.{ENDING}\n"
        assert names.answer("-x", first[4]) == [f"PTR {label}.{ENDING}." for label in self.labels(first[4])]

    def labels(self, ip: str) -> list[str]:
        """The names of the endpoint `first`; a hostname counts in the Service that its pod's subdomain names."""
        dashed = ip.replace(".", "-")
        return [f"{dashed}.all-peers", f"{dashed}.web", "peer-1.peers"]

    def test_a_pod_without_hostname_is_called_by_its_address(self, names: Names) -> None:
        ip = names.ip("second")
        dashed = ip.replace(".", "-")
        assert names.answer(f"{dashed}.peers.{ENDING}") == [f"A {ip}"]
        assert names.answer(f"{dashed}.web.{ENDING}") == [f"A {ip}"], "of a ClusterIP Service too"
        assert names.answer(f"second.peers.{ENDING}") == []

    @pytest.mark.parametrize(("service", "pods"), [("peers", 2), ("all-peers", 3)])
    def test_who_is_not_ready_has_a_name_only_if_published(self, names: Names, service: str, pods: int) -> None:
        expected = [names.ip(pod) for pod in ("first", "second", "third")[:pods]]
        assert names.answer(f"{service}.{ENDING}") == sorted(f"A {ip}" for ip in expected)

    def test_both_families_of_a_headless_service(self, names: Names) -> None:
        expected = [names.ip(pod, 6) for pod in ("first", "second")]
        assert names.answer(f"peers.{ENDING}", "AAAA") == sorted(f"AAAA {ip}" for ip in expected)

    def test_both_families_of_a_service_and_back(self, names: Names) -> None:
        (v6,) = (record.split()[1] for record in names.answer(f"web.{ENDING}", "AAAA"))
        assert v6.startswith("fd00:10:96::")
        for ip in ("10.96.40.1", v6):
            assert names.answer("-x", ip) == [f"PTR web.{ENDING}."]

    def test_each_named_port_of_each_endpoint(self, names: Names) -> None:
        targets = ["peer-1", names.ip("second").replace(".", "-"), names.ip("second", 6).replace(":", "-")]
        for port, number in (("http", 8000), ("admin", 9000)):
            assert names.answer("SRV", f"_{port}._tcp.peers.{ENDING}") == sorted(
                f"SRV 0 25 {number} {target}.peers.{ENDING}." for target in targets
            )
        extra = names.dig("+noall", "+additional", "SRV", f"_http._tcp.peers.{ENDING}")
        expected = [*names.pods["first"], *names.pods["second"]]
        assert sorted(line.split()[-1] for line in extra.splitlines()) == sorted(expected)

    def test_names_that_lead_to_names(self, names: Names) -> None:
        chain = [f"CNAME alias.{ENDING}.", f"CNAME web.{ENDING}."]
        assert names.answer(f"alias-of-alias.{ENDING}") == ["A 10.96.40.1", *chain]
        assert names.answer(f"elsewhere.{ENDING}") == ["CNAME www.example.org."]


class TestPrograms:
    def test_curl(self, names: Names) -> None:
        hosts = ("web", "web.names", "web.names.svc", f"web.{ENDING}", f"web.{ENDING}.", "alias-of-alias")
        urls = [*(f"http://{host}/" for host in hosts), "http://peer-1.peers:8000/"]
        answers = names.exec("client", "curl", "-sS", "-w", "\\n", *urls).stdout.split("\n")
        served = [json.loads(answer)["pod"] for answer in answers if answer]
        assert set(served[:-1]) <= {"first", "second"}
        assert (len(served), served[-1]) == (7, "first")
        failed = names.exec("client", "curl", "-sS", "http://gone/", check=False)
        assert (failed.returncode, failed.stderr) == (6, "curl: (6) Could not resolve host: gone\n")

    def test_python(self, names: Names) -> None:
        asked = ("peers", "peer-1.peers", "elsewhere", "gone", f"gone.{ENDING}.", "www.example.org")
        told = json.loads(names.exec("client", "python3", "-c", PYTHON, *asked).stdout)
        assert told == {
            "peers": sorted([*names.pods["first"], *names.pods["second"]]),
            "peer-1.peers": sorted(names.pods["first"]),
            # A CNAME that leads out of the cluster, and nobody to follow it.
            "elsewhere": ["Name or service not known"],
            # The last thing asked is `gone.`, a name of others: refused, which may pass.
            "gone": ["Temporary failure in name resolution"],
            f"gone.{ENDING}.": ["Name or service not known"],
            "www.example.org": ["Temporary failure in name resolution"],
        }

    def test_a_new_service_has_a_name_at_once(self, names: Names) -> None:
        kubectl = kubectl_of(names.cluster)
        assert names.answer(f"late.{ENDING}") == []
        kubectl("create", "service", "clusterip", "late", "--clusterip=10.96.40.9", "--tcp=80")
        deadline = time.monotonic() + 5
        while names.answer(f"late.{ENDING}") != ["A 10.96.40.9"]:
            assert time.monotonic() < deadline
        kubectl("delete", "service", "late")


class TestDig:
    def test_what_is_cut_comes_whole_over_tcp(self, names: Names) -> None:
        """The SRV records of both ports, and their addresses, take more than 512 bytes."""
        name = f"peers.{ENDING}"
        cut = names.dig("SRV", "+noedns", "+ignore", name)
        assert re.search(r"flags: qr aa tc rd; QUERY: 1, ANSWER: 6, AUTHORITY: 0, ADDITIONAL: [0-3]\n", cut)
        whole = names.dig("SRV", "+noedns", name)
        assert "Truncated, retrying in TCP mode" in whole
        assert "flags: qr aa rd; QUERY: 1, ANSWER: 6, AUTHORITY: 0, ADDITIONAL: 4\n" in whole

    def test_versions_of_edns(self, names: Names) -> None:
        assert "status: BADVERS" in names.dig("+edns=1", "+noednsnegotiation", f"web.{ENDING}")
        assert "status: NOERROR" in names.dig("+edns=1", f"web.{ENDING}"), "dig goes back to version 0"
        assert "udp: 4000" in names.dig("+bufsize=4000", f"web.{ENDING}")

    def test_the_servers_are_reached_over_ipv6_too(self, names: Names) -> None:
        for server in names.servers6:
            for transport in ("+notcp", "+tcp"):
                assert names.answer(f"@{server}", transport, f"web.{ENDING}") == ["A 10.96.40.1"]

    def test_the_zone_is_not_handed_out(self, names: Names) -> None:
        assert "; Transfer failed." in names.dig("cluster.local", "AXFR")

    def test_the_servers_log_their_zones(self, names: Names) -> None:
        said = kubectl_of(names.cluster)("logs", "-n", "kube-system", "deploy/coredns")
        assert said.splitlines() == ["cluster.local.:53", "in-addr.arpa.:53", "ip6.arpa.:53"]

    def test_the_servers_tell_their_name(self, names: Names) -> None:
        assert names.answer("NS", "cluster.local") == ["NS kube-dns.kube-system.svc.cluster.local."]
        assert names.answer("kube-dns.kube-system.svc.cluster.local") == ["A 10.96.0.10"]


class TestEndings:
    """How many queries a name costs: counted by the servers themselves."""

    CLUSTER = "cluster.local."

    @pytest.mark.parametrize(
        ("pod", "name", "wrong", "right"),
        [
            ("client", "web", 0, 1),
            ("client", "web.names", 1, 1),
            ("client", "web.names.svc", 2, 1),
            ("client", f"web.{ENDING}", 3, 1),
            ("client", f"web.{ENDING}.", 0, 1),
            ("one-dot", "web", 0, 1),
            ("one-dot", f"web.{ENDING}", 0, 1),
        ],
    )
    def test_inside(self, names: Names, pod: str, name: str, wrong: int, right: int) -> None:
        expected = Counter({"NOERROR": right, "NXDOMAIN": wrong, f"{self.CLUSTER} A": right + wrong})
        assert names.counted(pod, name) == (+expected, 0)

    @pytest.mark.parametrize(
        ("pod", "name", "wrong"), [("client", "www.example.org", 3), ("client", "www.example.org.", 0)]
    )
    def test_outside(self, names: Names, pod: str, name: str, wrong: int) -> None:
        """The C library asks twice where it is refused."""
        expected = Counter({"NXDOMAIN": wrong, f"{self.CLUSTER} A": wrong, "REFUSED": 2, "dropped A": 2})
        assert names.counted(pod, name) == (+expected, 2)
