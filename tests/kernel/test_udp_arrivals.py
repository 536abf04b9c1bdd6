"""Answers that come in by a network card, for a process of the node itself: no device of this machine sent them.

The card is a TUN device: what is sent to it we read, and what we write to it arrives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.conftest import Tracer, inhabited
from tests.kernel.traffic import ask
from tests.tracer.networks import Namespace, namespaces
from tracer.events import Outcome
from tracer.source.arrivals import IDLE_SECONDS
from tracer.source.live import LiveSource

pytestmark = pytest.mark.bpf

SERVER = "10.0.9.9"
# include/uapi/linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


@contextlib.contextmanager
def card(namespace: Namespace) -> Iterator[None]:
    """A route to SERVER by a device behind which every datagram is answered with its own bytes."""

    def open_device() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", b"card", IFF_TUN | IFF_NO_PI))
        return descriptor

    device = namespace.run(open_device)
    namespace.ip("address add 10.0.9.1/24 dev card", "link set card up")
    stop = threading.Event()
    thread = threading.Thread(target=_answer, args=(device, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(device)


def _answer(device: int, stop: threading.Event) -> None:
    while not stop.is_set():
        if not select.select([device], [], [], 0.05)[0]:
            continue
        packet = bytearray(os.read(device, 2048))
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_UDP:
            # Turned round, the sums of the IP header (RFC 791) and of UDP (RFC 768) stay right.
            packet[12:20] = packet[16:20] + packet[12:16]
            packet[20:24] = packet[22:24] + packet[20:22]
            os.write(device, packet)


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A namespace that tracks connections, as every node does."""
    with namespaces(1) as (one,):
        one.iptables("-A INPUT -m conntrack --ctstate NEW -j ACCEPT")
        with card(one):
            yield one


def be_quiet(source: LiveSource) -> None:
    """Read until the hook is detached."""
    until = time.monotonic() + IDLE_SECONDS + 0.5
    while time.monotonic() < until:
        source.read(0.1)


def test_while_datagrams_are_in_use(tracer: Tracer, node: Namespace) -> None:
    """The first one after a quiet time attaches the hook, too late for its own answer; that of the second is seen."""
    be_quiet(tracer.source)
    assert ask(node, SERVER, 53, connected=True) == b"hello"
    assert tracer.collect(0, node, seconds=0.5) == []
    assert ask(node, SERVER, 53, connected=True) == b"hello"
    second, first = tracer.collect(2, node, seconds=6)
    assert (first.shape.outcome, second.shape.outcome) == (Outcome.SENT, Outcome.ANSWERED)
    assert 0 < second.raw.latency_ns < 10**9


def test_right_after_a_quiet_time(open_backend: Callable[..., LiveSource], node: Namespace, patience: float) -> None:
    """The hook is not attached yet when the answer comes: conntrack knows of it, but not when it came."""
    with open_backend() as source, inhabited(node):
        tracer = Tracer(source, patience)
        be_quiet(source)
        assert ask(node, SERVER, 53, connected=True) == b"hello"
        (record,) = tracer.collect(1, node, seconds=6)
    assert (record.shape.outcome, record.raw.latency_ns) == (Outcome.ANSWERED, -1)
