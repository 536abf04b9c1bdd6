"""DNS queries against real servers in a namespace: the cluster's own, one that recurses, one that answers nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import dns.flags
import dns.message
import pytest

from labs.cluster.dns.answer import Responder
from labs.cluster.dns.index import Index
from labs.cluster.dns.message import respond
from labs.cluster.resources import NAMESPACES, SERVICES
from tests.tracer.networks import SERVICE, SERVICE6, Namespace
from tests.tracer.probe.conftest import Net, never
from tests.tracer.probe.rules_for import BACKENDS, BACKENDS6, kube_service
from tracer.errors import UsageError
from tracer.names.model import PodName
from tracer.probe import questions
from tracer.probe.conduct import Wishes
from tracer.probe.question_table import lines
from tracer.probe.questions import DnsReport, ask, server_words

NAME = "web.shop.svc.cluster.local"
KINDS = (True, False)

Handler = Callable[[bytes], bytes | None]


def cluster_names() -> Index:
    """shop/web, as the cluster's DNS has it."""
    index = Index()
    index.synced = True
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": []}
    index.change(NAMESPACES, ("", "shop"), {})
    index.change(SERVICES, ("shop", "web"), {"metadata": {"namespace": "shop", "name": "web"}, "spec": spec})
    return index


def cluster_dns(wire: bytes) -> bytes | None:
    response = respond(wire, Responder(cluster_names()), udp=True)
    return None if response is None else response.wire


def recursive(wire: bytes) -> bytes:
    """A resolver that validates: rd is copied, ra and ad are set, the answer is too long."""
    response = dns.message.make_response(dns.message.from_wire(wire), recursion_available=True)
    response.flags |= dns.flags.AD | dns.flags.TC
    return response.to_wire()


@contextlib.contextmanager
def dns_servers(namespace: Namespace, answer: Handler, *addresses: str, port: int = 8000) -> Iterator[None]:
    """A server at each address that answers each query, or does not."""
    stop = threading.Event()

    def serve(address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def opened() -> socket.socket:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((address, port))
            sock.settimeout(0.05)
            return sock

        with namespace.run(opened) as sock:
            ready.release()
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    query, peer = sock.recvfrom(4096)
                    data = answer(query)
                    if data is not None:
                        sock.sendto(data, peer)

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=serve, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
        ready.acquire()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.root
@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
def test_the_clusters_dns(net: Net, wishes: Callable[..., Wishes], v6: bool) -> None:
    client, router, server = net
    backends = BACKENDS6 if v6 else BACKENDS
    kube_service(router, *backends, protocol="udp", name="kube-system/kube-dns:dns")
    address = f"[{SERVICE6}]:80" if v6 else f"{SERVICE}:80"
    with dns_servers(server, cluster_dns, *backends):
        report = ask(NAME, "a", KINDS, address, wishes(client, 10), never)
    assert (report.name, report.type, len(report.exchanges)) == (f"{NAME}.", "A", 20)
    for number, exchange in enumerate(report.exchanges):
        desired = number % 2 == 0
        assert (exchange.recursion_desired, exchange.outcome, exchange.rcode) == (desired, "answered", "NOERROR")
        assert exchange.flags == (("qr", "aa", "rd") if desired else ("qr", "aa"))
        assert exchange.records == ((f"{NAME}.", "A", 30, "10.96.0.7"),)
        assert exchange.backend is not None and exchange.backend[0] in backends and exchange.backend[1] == 8000
        assert exchange.time is not None and 0 < exchange.time < 0.5
    assert len({exchange.backend for exchange in report.exchanges}) > 1
    (note,) = [note for note in report.notes if "recursion is not available" in note]
    assert "no error" in note and "RFC 1035, 4.1.1" in note


@pytest.mark.root
def test_without_the_bit_nothing_is_said_of_recursion(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, _, server = net
    with dns_servers(server, cluster_dns, "10.0.2.3", port=53):
        report = ask("no.shop.svc.cluster.local.", "SRV", (False,), "10.0.2.3", wishes(client, 1), never)
    (exchange,) = report.exchanges
    assert (exchange.rcode, exchange.flags, exchange.records) == ("NXDOMAIN", ("qr", "aa"), ())
    assert exchange.backend == ("10.0.2.3", 53)
    assert report.notes == ()


@pytest.mark.root
def test_a_server_that_recurses(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, _, server = net
    with dns_servers(server, recursive, "10.0.2.2", port=53):
        report = ask("example.org.", "A", KINDS, "10.0.2.2:53", wishes(client, 1), never)
    assert [exchange.flags for exchange in report.exchanges] == [
        ("qr", "tc", "rd", "ra", "ad"),
        ("qr", "tc", "ra", "ad"),
    ]
    (note,) = report.notes
    assert "cut (tc)" in note


@pytest.mark.root
@pytest.mark.parametrize("answer", [lambda wire: b"nonsense", lambda wire: wire, lambda wire: b"\0\0" + wire[2:]])
def test_an_answer_that_is_none(net: Net, wishes: Callable[..., Wishes], answer: Handler) -> None:
    """Bytes that are no message, our own query, the answer to another one."""
    client, _, server = net
    with dns_servers(server, answer, "10.0.2.2", port=53):
        report = ask("example.org.", "A", (True,), "10.0.2.2", wishes(client, 1), never)
    (exchange,) = report.exchanges
    assert (exchange.outcome, exchange.rcode, exchange.flags) == ("malformed", None, ())


@pytest.mark.root
def test_no_answer_and_no_server(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, _, server = net
    with dns_servers(server, lambda wire: None, "10.0.2.2", port=53):
        silent = ask("example.org.", "A", (True,), "10.0.2.2", wishes(client, 1), never)
    closed = ask("example.org.", "A", (True,), "10.0.2.2", wishes(client, 1), never)
    assert [report.exchanges[0].outcome for report in (silent, closed)] == ["unanswered", "refused"]
    document = json.loads(json.dumps(silent.to_json()))
    assert document["queries"] == [
        {
            "rd": True,
            "outcome": "unanswered",
            "rcode": None,
            "flags": [],
            "answers": [],
            "time_ms": None,
            "backend": None,
        }
    ]


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "pod", "note"),
    [
        ("web.shop", True, "fewer dots (1) than ndots:5"),
        ("web.shop.svc.cluster.local", True, "fewer dots (4) than ndots:5"),
        ("web.shop.svc.cluster.local.", True, None),
        ("web", False, "fewer dots (0) than ndots:1"),
        ("web.shop", False, None),
    ],
)
def test_the_search_list_is_the_resolvers(
    net: Net,
    wishes: Callable[..., Wishes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    pod: bool,
    note: str | None,
) -> None:
    client, _, server = net
    if pod:
        from tracer.probe import origin

        found = origin.Origin("default/client", client.inode, client.path, PodName("default", "client"))
        monkeypatch.setattr(origin, "find", lambda text: found)
    with dns_servers(server, cluster_dns, "10.0.2.2", port=53):
        report = ask(name, "A", (False,), "10.0.2.2", wishes(client, 1), never)
    assert report.exchanges[0].rcode in ("NOERROR", "REFUSED")
    if note is None:
        assert report.notes == ()
    else:
        assert [note in each and "search list" in each for each in report.notes] == [True]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("10.96.0.10", "10.96.0.10:53/udp"),
        ("10.96.0.10:5353", "10.96.0.10:5353/udp"),
        ("fd00::a", "[fd00::a]:53/udp"),
        ("[fd00::a]", "[fd00::a]:53/udp"),
        ("[fd00::a]:54", "[fd00::a]:54/udp"),
        ("kube-system/kube-dns:dns", "kube-system/kube-dns:dns/udp"),
        ("10.96.0.10:53/udp", "10.96.0.10:53/udp"),
    ],
)
def test_who_is_asked(server: str, words: str) -> None:
    assert server_words(server) == words


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a..b", "A", "is no DNS name"),
        ("x" * 64, "A", "is no DNS name"),
        (".".join(["x" * 60] * 5), "A", "is no DNS name"),
        ("a.b", "NOPE", "is no type of DNS record"),
        ("a.b", "", "is no type of DNS record"),
    ],
)
def test_what_can_not_be_asked(name: str, kind: str, message: str, wishes: Callable[..., Wishes]) -> None:
    from tracer.probe.run import Plan

    with pytest.raises(UsageError, match=message):
        ask(name, kind, (True,), "10.96.0.10", Wishes(Plan(1, 1, 1)), never)


@pytest.mark.root
@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(net: Net, wishes: Callable[..., Wishes], width: int) -> None:
    client, _, server = net
    with dns_servers(server, cluster_dns, "10.0.2.2", port=53):
        report = ask(NAME, "A", KINDS, "10.0.2.2", wishes(client, 2), never)
    pod = PodName("kube-system", "coredns-546c8b44db-2qqgv-with-a-long-tail")
    named = replace(report, exchanges=tuple(replace(each, pod=pod) for each in report.exchanges))
    for shown in (report, named):
        text = ["".join(span.text for span in line) for line in lines(shown, width)]
        assert max(map(len, text)) <= width
        assert text.count(f"{NAME}. 30 A 10.96.0.7") == 1
        assert [line.split()[:2] for line in text if line.startswith(("rd ", "no rd "))] == [
            ["rd", "NOERROR"],
            ["no", "rd"],
        ] * 2


def test_records_are_escaped_for_people() -> None:
    record = questions.Record("a\x1b[1m.", "TXT", 5, '"\x07"')
    exchange = questions.Exchange(True, "answered", "NOERROR", ("qr",), (record,), 0.001, ("10.0.0.1", 53), None)
    from tracer.destination import Destination
    from tracer.probe.origin import Origin

    report = DnsReport(
        "a.", "TXT", Destination("x", "10.0.0.1", 53, "UDP"), Origin(None, 1), "10.0.0.2", (exchange,), ()
    )
    text = "\n".join("".join(span.text for span in line) for line in lines(report, 120))
    assert "\x1b" not in text and "\x07" not in text
    assert 'a\\x1b[1m. 5 TXT "\\x07"' in text
