"""How long a new flow takes: connect() of TCP, from the call until the connection stands.

The handshake of two network namespaces of one machine runs within the system call: SYN, SYN-ACK and ACK pass the
datapath before it returns, and no other process has to wake up. So what differs between two datapaths is the datapath.

Each connection is a new flow, from an address and port of its own that was not used before in this measurement, and is
reset at once, so that no socket waits. Targets come in random order, one after the other. What is left out of the
times: making sockets, choosing ports, accepting. What is in them besides: Python's own call, less than a microsecond.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from labs.bench import objects
from labs.bench.wiring import Wiring
from tracer.errors import K8snetError

WARM_UP = 24
BATCH = 512  # connections that wait to be accepted, at most
CHECKS = 24  # enough that one of three endpoints is left out with a chance of 1 in 5,000
PERCENTILES = (50, 90, 99)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PORTS = range(1024, 61000)

Address = tuple[str, int]
Times = dict[str, list[float]]


def measure(wiring: Wiring, targets: Mapping[str, str], samples: int, seed: int) -> Times:
    """Microseconds of `samples` connections to each of `targets` (name -> IP address). Raises OSError."""
    chance = random.Random(seed)
    order = [name for name in targets for _ in range(samples)]
    chance.shuffle(order)
    order[:0] = [name for name in targets for _ in range(WARM_UP)]
    sources = _sources(len(order), chance)
    found: list[tuple[str, float]] = []
    with contextlib.closing(wiring.listen()) as listener, wiring.client(), _undisturbed():
        for start in range(0, len(order), BATCH):
            names = order[start : start + BATCH]
            found += zip(names, _connect(names, targets, sources[start : start + BATCH]), strict=True)
            _accept(listener)
    times: Times = {name: [] for name in targets}
    for name, microseconds in found[WARM_UP * len(targets) :]:
        times[name].append(microseconds)
    return times


def percentiles(times: Iterable[float]) -> dict[str, float]:
    """p50, p90 and p99: the smallest value that so many percent do not exceed."""
    ordered = sorted(times)
    return {f"p{percent}": ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in PERCENTILES}


def check(wiring: Wiring, ip: str, wanted: Sequence[str], seed: int = 0) -> None:
    """Make sure that connections to `ip` end at the addresses `wanted`, each of them, and nowhere else.

    Raises K8snetError.
    """
    sources = _sources(CHECKS, random.Random(seed))
    with contextlib.closing(wiring.listen()) as listener:
        with wiring.client():
            _connect(["it"] * CHECKS, {"it": ip}, sources)
        reached = set(_accept(listener))
    if reached != set(wanted):
        raise K8snetError(f"connections to {ip} reached {sorted(reached)} and not {sorted(wanted)}")


def _connect(names: Sequence[str], targets: Mapping[str, str], sources: Sequence[Address]) -> list[float]:
    """Connect once to each, and reset it. The body of the loop is what is measured: nothing belongs here besides."""
    clock, times = time.perf_counter_ns, []
    for name, source in zip(names, sources, strict=True):
        destination = (targets[name], objects.PORT)
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        client.bind(source)
        began = clock()
        client.connect(destination)
        ended = clock()
        client.close()
        times.append((ended - began) / 1000)
    return times


def _accept(listener: socket.socket) -> list[str]:
    """Take all connections that wait, and give the addresses that they came to."""
    reached: list[str] = []
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return reached
        reached.append(str(connection.getsockname()[0]))
        connection.close()


def _sources(count: int, chance: random.Random) -> list[Address]:
    """So many different addresses and ports."""
    addresses = [str(ip) for ip in ipaddress.ip_network(objects.CLIENT_SOURCES).hosts()]
    numbers = chance.sample(range(len(addresses) * len(_PORTS)), count)
    return [(addresses[number % len(addresses)], _PORTS[number // len(addresses)]) for number in numbers]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """On one processor, and without garbage collection."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.sched_setaffinity(0, allowed)
