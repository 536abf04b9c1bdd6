"""What kube-proxy answers to load balancers: is it well, and has this node pods of a Service?

Stands for pkg/proxy/healthcheck of kube-proxy v1.30: proxier_health.go (port 10256: /healthz for load balancers, which
also fails when the node is to go, and /livez for whoever restarts kube-proxy) and service_health.go (the
healthCheckNodePort of each Service of type LoadBalancer with externalTrafficPolicy Local: 200 where there are ready
endpoints, else 503). Left out: metrics, and the Events that tell of a port that is taken (the log does). A dual-stack
Service is counted in its first family; the real one lets the proxier of each family try to have the port.

What belongs here: HTTP, and when kube-proxy is late. What does not: which Services have health checks
(`labs.cluster.proxy.healthchecks`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from labs.cluster.proxy.healthchecks import HealthCheck, ServiceKey
from labs.cluster.resources import Object

PORT = 10256  # --healthz-bind-address
LATE_SECONDS = 60.0  # twice --iptables-sync-period
RETRY_SECONDS = 5.0
CLOSE_SECONDS = 0.1
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
NEVER = "0001-01-01 00:00:00 +0000 UTC"  # Go's zero time

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Health:
    """Whether kube-proxy keeps up: a change is in the kernel within LATE_SECONDS. `clock` gives nanoseconds."""

    clock: Callable[[], int] = time.monotonic_ns
    node_eligible: bool = True  # until a node event says otherwise
    _began: int = field(init=False)
    _pending: int | None = None  # since when there is something to do
    _updated: int | None = None

    def __post_init__(self) -> None:
        self._began = self.clock()

    def queued(self) -> None:
        """Something changed that the kernel does not have yet."""
        if self._pending is None:
            self._pending = self.clock()

    def updated(self) -> None:
        """The kernel has all of it."""
        self._pending, self._updated = None, self.clock()

    def caught_up(self, node: Object | None, *, more: bool) -> None:
        """The kernel has all that was known. `more`: something has changed meanwhile. `node`: this one, by the API."""
        self.updated()
        if more:
            self.queued()
        if node is not None:
            self.see_node(node)

    def see_node(self, node: Object) -> None:
        """Find out whether this node is to go, and should get no new connections."""
        taints = (node.get("spec") or {}).get("taints") or ()
        going = "deletionTimestamp" in node["metadata"] or any(taint["key"] == TO_BE_DELETED for taint in taints)
        self.node_eligible = not going

    @property
    def is_ready(self) -> bool:
        """Whether the kernel has had all of it once."""
        return self._updated is not None

    @property
    def is_healthy(self) -> bool:
        """Whether kube-proxy itself is; also while it starts."""
        return self._pending is None or self.clock() - self._pending < LATE_SECONDS * 1e9

    def times(self) -> tuple[str, str]:
        """When the kernel was last up to date, and now. Who is healthy says now for both, as older versions did."""
        now = self._text(self.clock())
        if self.is_healthy:
            return now, now
        return NEVER if self._updated is None else self._text(self._updated), now

    def _text(self, moment: int) -> str:
        """A moment as Go prints it: with what its monotonic clock says, since the program began."""
        nanoseconds = time.time_ns() - (self.clock() - moment)
        seconds, fraction = divmod(nanoseconds, 10**9)
        digits = f".{fraction:09d}".rstrip("0").rstrip(".")
        since, rest = divmod(moment - self._began, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}{digits} +0000 UTC m=+{since}.{rest:09d}"


async def serve_health(health: Health, port: int = PORT, *, readiness: bool = False) -> None:
    """Answer for kube-proxy itself, until cancelled.

    `readiness`: at /readyz too, which kube-proxy has not, being healthy before it has done anything.
    """

    async def answer(request: web.BaseRequest) -> web.Response:
        if readiness and request.path == "/readyz":
            return _reply(health.is_ready, "")
        if request.path not in ("/healthz", "/livez"):
            headers = {"X-Content-Type-Options": "nosniff"}
            return web.Response(text="404 page not found\n", status=404, headers=headers)
        last, now = health.times()
        healthy, more = health.is_healthy, ""
        if request.path == "/healthz":
            healthy = healthy and health.node_eligible
            more = f', "nodeEligible": {json.dumps(health.node_eligible)}'
        # Go's format string leaves out the blank, too.
        return _reply(healthy, f'{{"lastUpdated": {json.dumps(last)},"currentTime": {json.dumps(now)}{more}}}')

    while True:
        try:
            runner = await _listen(port, answer)
            break
        except OSError as error:
            log.error("failed to start proxier healthz on 0.0.0.0:%s: %s", port, error)
            await asyncio.sleep(RETRY_SECONDS)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


class ServiceHealth:
    """The health check ports of all Services on this node."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._checks: dict[ServiceKey, HealthCheck] = {}
        self._servers: dict[ServiceKey, tuple[int, web.ServerRunner]] = {}

    async def sync(self, checks: Mapping[ServiceKey, HealthCheck]) -> None:
        """Answer for these Services, and for no others. A port that is taken is tried again with the next call."""
        self._checks = dict(checks)
        for service, (port, runner) in list(self._servers.items()):
            if service not in checks or checks[service].port != port:
                del self._servers[service]
                await runner.cleanup()
        for service, check in checks.items():
            if service not in self._servers:
                try:
                    self._servers[service] = check.port, await _listen(check.port, self._handler(service))
                except OSError as error:
                    log.error("failed to start healthcheck %s/%s on port %s: %s", *service, check.port, error)

    def _handler(self, service: ServiceKey) -> Handler:
        async def answer(_request: web.BaseRequest) -> web.Response:
            check = self._checks[service]
            about = {
                "service": dict(zip(("namespace", "name"), service, strict=True)),
                "localEndpoints": check.endpoints,
                "serviceProxyHealthy": self._health.is_healthy,
            }
            well = check.endpoints != 0 and self._health.is_healthy
            weight = {"X-Load-Balancing-Endpoint-Weight": str(check.endpoints)}
            return _reply(well, json.dumps(about, indent="\t"), weight)

        return answer


def _reply(healthy: bool, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    about = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return web.Response(body=text.encode(), status=200 if healthy else 503, headers=about)


async def _listen(port: int, handler: Handler) -> web.ServerRunner:
    """Serve on a port of all addresses of both families. Raises OSError."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner
