"""What is asked of the DNS server over HTTP: its counters by Prometheus, its health and readiness by the kubelet.

Stands for plugin/metrics (:9153/metrics), health (:8080/health) and ready (:8181/ready), with CoreDNS's names, labels
and buckets. Left out: the counters of sizes, of plugins and of Go itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import dns.rcode
import dns.rdatatype
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from labs.cluster.dns.message import Response
from labs.cluster.serving import say

SERVER = "dns://:53"
VIEW = ""
BUCKETS = tuple(0.00025 * 2**power for power in range(16))  # plugin.TimeBuckets: 0.25 ms to 8 s
KNOWN_TYPES = frozenset(  # plugin/metrics/vars/monitor.go; all else counts as "other"
    [
        "A",
        "AAAA",
        "CNAME",
        "DNSKEY",
        "DS",
        "MX",
        "NSEC3",
        "NSEC",
        "NS",
        "PTR",
        "RRSIG",
        "SOA",
        "SRV",
        "TXT",
        "HTTPS",
        "IXFR",
        "AXFR",
        "ANY",
    ]
)
METRICS_PORT, HEALTH_PORT, READY_PORT = 9153, 8080, 8181
ANOTHER_TYPE = 256  # above all of them: a client that tries all types makes no more series
Labels = tuple[str, int, int, str, str, int]


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # Go's library has no such series
        self.registry = CollectorRegistry()
        where = ("server", "zone", "view")
        self._requests = Counter(
            "coredns_dns_requests_total",
            "Counter of DNS requests made per zone, protocol and family.",
            (*where, "proto", "family", "type"),
            registry=self.registry,
        )
        self._responses = Counter(
            "coredns_dns_responses_total",
            "Counter of response status codes.",
            (*where, "rcode", "plugin"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "coredns_dns_request_duration_seconds",
            "Histogram of the time (in seconds) each request took per zone.",
            where,
            buckets=BUCKETS,
            registry=self.registry,
        )
        # Looking a series up by its labels takes as long as all else that a remembered answer costs.
        self._series: dict[Labels, tuple[Counter, Counter, Histogram]] = {}

    def count(self, response: Response, protocol: str, family: int, seconds: float) -> None:
        """Count one response. `protocol`: udp, tcp; `family`: 4, 6. What no plugin saw is not counted."""
        if response.zone is None:
            return
        rdtype = min(response.rdtype, ANOTHER_TYPE)
        labels = (response.zone, rdtype, response.rcode, response.plugin, protocol, family)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._find(*labels)
        requests, responses, durations = series
        requests.inc()
        responses.inc()
        durations.observe(seconds)

    def _find(
        self, zone: str, rdtype: int, rcode: int, plugin: str, protocol: str, family: int
    ) -> tuple[Counter, Counter, Histogram]:
        where = (SERVER, zone, VIEW)
        kind = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype))
        kind = kind if kind in KNOWN_TYPES else "other"
        return (
            self._requests.labels(*where, protocol, "2" if family == 6 else "1", kind),
            self._responses.labels(*where, dns.rcode.to_text(dns.rcode.Rcode(rcode)), plugin),
            self._durations.labels(*where),
        )

    def text(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self.registry)


async def serve(metrics: Metrics, ready: Callable[[], bool], families: list[int]) -> list[web.AppRunner]:
    """Open the three ports on all addresses of `families` (4, 6); `ready` tells whether names are complete. Gives what
    to clean up."""

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def show_health(request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def show_ready(request: web.Request) -> web.Response:
        if ready():
            return web.Response(text="OK")
        say('[INFO] plugin/ready: Still waiting on: "kubernetes"')
        return web.Response(status=503, text="kubernetes")

    return [
        await _serve("/metrics", METRICS_PORT, show_metrics, families),
        await _serve("/health", HEALTH_PORT, show_health, families),
        await _serve("/ready", READY_PORT, show_ready, families),
    ]


async def _serve(
    path: str, port: int, handler: Callable[[web.Request], Awaitable[web.Response]], families: list[int]
) -> web.AppRunner:
    application = web.Application()
    application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    for family in families:
        await web.TCPSite(runner, "0.0.0.0" if family == 4 else "::", port).start()
    return runner
