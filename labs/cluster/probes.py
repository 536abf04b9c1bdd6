"""Readiness, liveness and startup probes: asking a container again and again whether it is well.

Stands for pkg/kubelet/prober (worker.go, prober.go) and pkg/probe (http, tcp, exec), with their words. Probes come from
the node's network, as the kubelet's do. Left out: grpc, and redirects (a 3xx counts as success, as kubelet counts one
that leads to another host).

What belongs here: when to ask, one answer, thresholds. What does not: what follows from a result
(`labs.cluster.containerrun`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labs.cluster import linux
from labs.cluster.execsync import NotExecuted
from labs.cluster.resources import Object

USER_AGENT = "kube-probe/1.30"


@dataclass(frozen=True, slots=True)
class Reach:
    """How to reach a container. `address`: of its pod; `netns`: descriptor of the node's network namespace;
    `execute`: runs a command inside, within so many seconds; gives its exit status and output, and raises TimeoutError
    and NotExecuted (`labs.cluster.execsync`)."""

    address: str
    netns: int
    execute: Callable[[Sequence[str], float | None], Awaitable[tuple[int, str]]]


class Unwell(Exception):
    """A probe failed; the text says how, in kubelet's words."""


class Errored(Exception):
    """A probe could not be made, which says nothing about the container; the text says why."""


class Prober:
    """The probes of one run of one container. `entry`: the container in its pod's spec.

    `on_start` is called once the startup probe, if there is one, succeeded; `on_ready` with each result of the
    readiness probe; `on_failure` with the kind of probe ("Readiness", …) and with "failed: …" or "errored: …".
    """

    def __init__(
        self,
        entry: Object,
        reach: Reach,
        on_start: Callable[[], None],
        on_ready: Callable[[bool], None],
        on_failure: Callable[[str, str], None],
    ) -> None:
        self._entry = entry
        self._reach = reach
        self._on_start = on_start
        self._on_ready = on_ready
        self._on_failure = on_failure

    async def run(self) -> str:
        """Probe until the container has to be restarted; gives the kind of probe that wants it: startup, liveness."""
        if self._entry.get("startupProbe"):
            async for well in self._results("startupProbe", "Startup"):
                if not well:
                    return "startup"
                break
        self._on_start()
        readiness = asyncio.create_task(self._readiness())
        try:
            if self._entry.get("livenessProbe"):
                async for well in self._results("livenessProbe", "Liveness"):
                    if not well:
                        return "liveness"
            await readiness
            raise AssertionError("probing has no end")
        finally:
            readiness.cancel()

    async def _readiness(self) -> None:
        if self._entry.get("readinessProbe"):
            async for well in self._results("readinessProbe", "Readiness"):
                self._on_ready(well)
        else:
            self._on_ready(True)
            await asyncio.Event().wait()

    async def _results(self, name: str, kind: str) -> AsyncIterator[bool]:
        """What one probe finds, each time that a threshold is reached."""
        probe = self._entry[name]
        successes = failures = 0
        await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
        while True:
            try:
                await attempt(probe, self._entry, self._reach)
            except Unwell as error:
                successes, failures = 0, failures + 1
                self._on_failure(kind, f"failed: {error}")
            except Errored as error:  # thrown away (worker.go, doProbe)
                self._on_failure(kind, f"errored: {error}")
                await asyncio.sleep(probe["periodSeconds"])
                continue
            else:
                successes, failures = successes + 1, 0
            if successes >= probe["successThreshold"]:
                yield True
            if failures >= probe["failureThreshold"]:
                yield False
            await asyncio.sleep(probe["periodSeconds"])


async def attempt(probe: Object, entry: Object, reach: Reach) -> None:
    """Ask once. Raises Unwell and Errored."""
    seconds = float(probe["timeoutSeconds"])
    if probe.get("httpGet"):
        status = await get(probe["httpGet"], entry, reach, seconds)
        if not 200 <= status < 400:
            raise Unwell(f"HTTP probe failed with statuscode: {status}")
    elif probe.get("tcpSocket"):
        await _tcp(probe["tcpSocket"], entry, reach, seconds)
    elif probe.get("exec"):
        command = probe["exec"].get("command") or []
        try:
            status, output = await reach.execute(command, seconds)
        except TimeoutError:
            raise Unwell(f'command timed out: "{" ".join(command)}" timed out after {seconds:g}s') from None
        except NotExecuted as error:
            raise Errored(error.message) from None
        if status != 0:
            raise Unwell(output.rstrip("\n"))


def _port(port: int | str, entry: Object) -> int:
    """The number of a port that may be named. Raises Unwell."""
    if isinstance(port, int):
        return port
    named = (item["containerPort"] for item in entry.get("ports") or () if item.get("name") == port)
    number = next(named, None)
    if number is None and not port.isdecimal():
        raise Unwell(f"couldn't find port: {port}")
    return int(port) if number is None else int(number)


async def get(action: Object, entry: Object, reach: Reach, seconds: float) -> int:
    """Do an httpGet; gives the status of the answer. Raises Unwell."""
    import aiohttp
    from yarl import URL

    host, port = action.get("host") or reach.address, _port(action["port"], entry)
    scheme = action.get("scheme", "HTTP").lower()
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{scheme}://{place}{action.get('path') or '/'}"
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*"}
    headers.update((one["name"], one["value"]) for one in action.get("httpHeaders") or ())

    def make_socket(info: Any) -> socket.socket:
        with linux.network_namespace(reach.netns):
            return socket.socket(info[0], info[1], info[2])

    connector = aiohttp.TCPConnector(socket_factory=make_socket, force_close=True, ssl=False)
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response,
        ):
            return response.status
    except TimeoutError:
        raise Unwell(
            f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise Unwell(f'Get "{url}": dial tcp {place}: connect: {_words(error.os_error)}') from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unwell(f'Get "{url}": {error or "EOF"}') from None


async def _tcp(action: Object, entry: Object, reach: Reach, seconds: float) -> None:
    host, port = action.get("host") or reach.address, _port(action["port"], entry)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with linux.network_namespace(reach.netns):
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    with connection:
        connection.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(connection, (host, port)), seconds)
        except TimeoutError:
            raise Unwell(f"dial tcp {place}: i/o timeout") from None
        except OSError as error:
            raise Unwell(f"dial tcp {place}: connect: {_words(error)}") from None


def _words(error: OSError) -> str:
    """An errno in the words of Go: in small letters."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
