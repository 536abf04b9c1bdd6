"""The sockets of the DNS server, on loopback: both transports, impatient and rude clients, and what it counts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import pytest

from labs.cluster.dns import metrics, server
from labs.cluster.dns.server import Server
from tests.labs.cluster.dns.names_of_a_shop import S, lines, shop

NAME = f"web.shop.{S}"
Check = Callable[[Server, int], Coroutine[Any, Any, None]]


def free_port() -> int:
    """A port that nobody has for UDP or TCP, as far as one can tell."""
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        return int(tcp.getsockname()[1])


def serving(check: Check) -> None:
    """Run `check` beside a server."""

    async def run() -> None:
        running, port = Server(shop()), free_port()
        await running.listen([4], port)
        try:
            await asyncio.wait_for(check(running, port), 30)
        finally:
            running.close()
            await asyncio.sleep(0)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def framed(*queries: dns.message.Message) -> bytes:
    return b"".join(query.to_wire(prepend_length=True) for query in queries)


async def receive(reader: asyncio.StreamReader) -> dns.message.Message:
    length = int.from_bytes(await reader.readexactly(2), "big")
    return dns.message.from_wire(await reader.readexactly(length))


def test_both_transports_answer_the_same() -> None:
    async def check(_: Server, port: int) -> None:
        query = dns.message.make_query(NAME, "A")
        over_udp = await dns.asyncquery.udp(query, "127.0.0.1", 5, port)
        over_tcp = await dns.asyncquery.tcp(query, "127.0.0.1", 5, port)
        assert lines(over_udp.answer) == lines(over_tcp.answer) == [f"{NAME}. 30 IN A 10.96.1.1"]

    serving(check)


def test_a_cut_answer_is_whole_over_tcp() -> None:
    async def check(_: Server, port: int) -> None:
        query = dns.message.make_query(f"many.shop.{S}", "A")
        response, was_tcp = await dns.asyncquery.udp_with_fallback(query, "127.0.0.1", 5, port=port)
        assert (was_tcp, len(response.answer[0])) == (True, 1500)

    serving(check)


def test_queries_in_a_row_without_waiting_are_answered_in_their_order() -> None:
    async def check(_: Server, port: int) -> None:
        names = [NAME, f"no.shop.{S}", f"many.shop.{S}", NAME] * 5
        queries = [dns.message.make_query(name, "A", id=number) for number, name in enumerate(names)]
        async with connection(port) as (reader, writer):
            writer.write(framed(*queries))
            responses = [await receive(reader) for _ in queries]
        assert [response.id for response in responses] == list(range(20))
        assert [response.rcode() for response in responses[:2]] == [dns.rcode.NOERROR, dns.rcode.NXDOMAIN]

    serving(check)


def test_a_query_may_come_in_pieces() -> None:
    async def check(_: Server, port: int) -> None:
        query = dns.message.make_query(NAME, "A")
        async with connection(port) as (reader, writer):
            for byte in framed(query):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.001)
            assert (await receive(reader)).id == query.id

    serving(check)


def test_rubbish_over_tcp_gets_a_format_error_and_the_connection_lives() -> None:
    async def check(_: Server, port: int) -> None:
        async with connection(port) as (reader, writer):
            writer.write(b"\0\x05hello" + b"\0\0" + b"\0\x20" + bytes(32) + framed(dns.message.make_query(NAME, "A")))
            assert (await receive(reader)).rcode() == dns.rcode.FORMERR
            assert (await receive(reader)).rcode() == dns.rcode.NOERROR

    serving(check)


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("FIRST_SECONDS", b""),
        ("FIRST_SECONDS", b"\0\x30half"),
        ("IDLE_SECONDS", framed(dns.message.make_query(NAME, "A"))),
    ],
    ids=["no query", "half a query", "no second query"],
)
def test_a_client_that_keeps_quiet_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes) -> None:
    monkeypatch.setattr(server, "FIRST_SECONDS", 20.0)
    monkeypatch.setattr(server, "IDLE_SECONDS", 20.0)
    monkeypatch.setattr(server, limit, 0.2)

    async def check(running: Server, port: int) -> None:
        async with connection(port) as (reader, writer):
            writer.write(sent)
            async with asyncio.timeout(5):
                await reader.read()  # until the end
        assert running._connections == {}

    serving(check)


def test_a_client_that_reads_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.2)

    async def check(running: Server, port: int) -> None:
        listening = next(opened for opened in running._sockets if isinstance(opened, asyncio.Server))
        listening.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(framed(dns.message.make_query(f"many.shop.{S}", "A")) * 20)
            await until(lambda: len(running._connections) == 1)
            await until(lambda: running._connections == {})
        await still_answers(port)

    serving(check)


def test_of_too_many_connections_the_one_that_was_quiet_for_longest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)

    async def check(running: Server, port: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for number in range(5):
                clients.append(await stack.enter_async_context(connection(port)))
                await until(lambda: len(running._connections) == number + 1)  # noqa: B023
            clients[0][1].write(framed(dns.message.make_query(NAME, "A")))
            await receive(clients[0][0])
            late, writer = await stack.enter_async_context(connection(port))
            with contextlib.suppress(OSError):
                assert await asyncio.wait_for(clients[1][0].read(), 5) == b"", "the second one ended"
            writer.write(framed(dns.message.make_query(NAME, "A")))
            assert (await receive(late)).rcode() == dns.rcode.NOERROR
            assert len(running._connections) == 5

    serving(check)


async def still_answers(port: int) -> None:
    """Ask as often as a resolver would: a datagram may be lost while others wait."""
    for _ in range(5):
        with contextlib.suppress(dns.exception.Timeout):
            response = await dns.asyncquery.udp(dns.message.make_query(NAME, "A"), "127.0.0.1", 2, port)
            assert lines(response.answer) == [f"{NAME}. 30 IN A 10.96.1.1"]
            return
    raise AssertionError("no answer")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_flood_of_rubbish_does_no_harm() -> None:
    async def check(_: Server, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for number in range(2000):
                client.sendto(number.to_bytes(4, "big") * (number % 40), ("127.0.0.1", port))
                if number % 10 == 0:
                    await asyncio.sleep(0)
        await still_answers(port)

    serving(check)


def test_what_is_counted() -> None:
    async def check(running: Server, port: int) -> None:
        for name, kind in ((NAME, "A"), (NAME, "A"), (f"no.shop.{S}", "LOC"), ("example.org", "A")):
            await dns.asyncquery.udp(dns.message.make_query(name, kind), "127.0.0.1", 5, port)
        await dns.asyncquery.tcp(dns.message.make_query("cluster.local", "AXFR"), "127.0.0.1", 5, port)
        counted = [line for line in running.metrics.text().decode().splitlines() if not line.startswith("#")]
        where = 'server="dns://:53",view="",zone="cluster.local."'
        dropped = 'server="dns://:53",view="",zone="dropped"'
        assert {line for line in counted if "_bucket" not in line and "_sum" not in line} == {
            f'coredns_dns_requests_total{{family="1",proto="udp",{place(where, "A")}}} 2.0',
            f'coredns_dns_requests_total{{family="1",proto="udp",{place(where, "other")}}} 1.0',
            f'coredns_dns_requests_total{{family="1",proto="udp",{place(dropped, "A")}}} 1.0',
            f'coredns_dns_requests_total{{family="1",proto="tcp",{place(where, "AXFR")}}} 1.0',
            f'coredns_dns_responses_total{{plugin="loadbalance",rcode="NOERROR",{where}}} 2.0',
            f'coredns_dns_responses_total{{plugin="loadbalance",rcode="NXDOMAIN",{where}}} 1.0',
            f'coredns_dns_responses_total{{plugin="",rcode="REFUSED",{where}}} 1.0',
            f'coredns_dns_responses_total{{plugin="",rcode="REFUSED",{dropped}}} 1.0',
            f"coredns_dns_request_duration_seconds_count{{{where}}} 4.0",
            f"coredns_dns_request_duration_seconds_count{{{dropped}}} 1.0",
        }

    def place(where: str, kind: str) -> str:
        server_label, rest = where.split(",", 1)
        return f'{server_label},type="{kind}",{rest}'

    serving(check)


def test_health_readiness_and_counters_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    ports = {name: free_port() for name in ("METRICS_PORT", "HEALTH_PORT", "READY_PORT")}
    for name, port in ports.items():
        monkeypatch.setattr(metrics, name, port)

    async def run() -> None:
        ready = False
        runners = await metrics.serve(metrics.Metrics(), lambda: ready, [4])

        async def get(port: int, path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, await response.text()

        async with aiohttp.ClientSession() as session:
            assert await get(ports["HEALTH_PORT"], "/health") == (200, "OK")
            assert await get(ports["READY_PORT"], "/ready") == (503, "kubernetes")
            ready = True
            assert await get(ports["READY_PORT"], "/ready") == (200, "OK")
            status, text = await get(ports["METRICS_PORT"], "/metrics")
            assert (status, "# TYPE coredns_dns_requests_total counter" in text) == (200, True)
            assert (await get(ports["METRICS_PORT"], "/"))[0] == 404
        for runner in runners:
            await runner.cleanup()

    asyncio.run(run())
