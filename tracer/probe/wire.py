"""Raw sockets: packets go out as they were made, and what comes back for them is read.

What belongs here: sockets of the calling thread's network namespace. What does not: what a packet says (`packets`).

A packet that is written to a raw socket passes netfilter's OUTPUT hook as any other does (Linux net/ipv4/raw.c,
raw_send_hdrinc; net/ipv6/raw.c, rawv6_send_hdrinc), so that rules for the node's own processes see it. One that is
received is a copy, made after connection tracking has translated it back and after INPUT: what a program would get.

No socket of a program stands behind the flows. So the kernel itself answers a SYN-ACK with a RST, at once: nothing is
left half open, and the conntrack entry is forgotten after nf_conntrack_tcp_timeout_close, ten seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from array import array
from collections.abc import Iterator

from tracer.errors import K8snetError, NotRoot
from tracer.probe.packets import Ends, Reply, read_icmp, read_tcp, read_udp

BUFFER_BYTES = 1 << 20
_SO_ATTACH_FILTER = 26
_SOCK_FILTER = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, operand
_LDX_HEADER_LENGTH, _LD_HALF, _LD_HALF_AFTER_HEADER, _JGE, _JGT, _RET = 0xB1, 0x28, 0x48, 0x35, 0x25, 0x06


class Wire:
    """Out and in, for the packets of one probe. A context manager."""

    def __init__(self, ends: Ends, ports: tuple[int, int]) -> None:
        """ports: the lowest and highest source port. Raises NotRoot without CAP_NET_RAW."""
        self._ends = ends
        self._stack = contextlib.ExitStack()
        udp = ends.protocol == "UDP"
        try:
            self._out = self._open(socket.IPPROTO_RAW)  # implies IP_HDRINCL, raw(7)
            self._answers = self._open(socket.IPPROTO_UDP if udp else socket.IPPROTO_TCP)
            self._errors = self._open(socket.IPPROTO_ICMPV6 if ends.v6 else socket.IPPROTO_ICMP)
            _attach(self._answers, _program(ends.v6, *ports))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def filenos(self) -> tuple[int, ...]:
        """What to wait on for something to be received."""
        return self._answers.fileno(), self._errors.fileno()

    def send(self, packet: bytes) -> bool:
        """Send a packet; False when a rule of this namespace drops it. Raises K8snetError when there is no way."""
        try:
            self._out.sendto(packet, (self._ends.destination, 0))
        except OSError as error:
            if error.errno == errno.EPERM:
                return False
            raise no_way(self._ends.destination, error) from error
        return True

    def receive(self) -> Iterator[tuple[Reply, str]]:
        """What has come since, each with the address that it came from."""
        read = read_udp if self._ends.protocol == "UDP" else read_tcp
        for message, by in _messages(self._answers, self._ends.v6):
            reply = read(message)
            if reply is not None:
                yield reply, by
        for message, by in _messages(self._errors, self._ends.v6):
            reply = read_icmp(message, self._ends)
            if reply is not None:
                yield reply, by

    def _open(self, protocol: int) -> socket.socket:
        opened = _raw(socket.AF_INET6 if self._ends.v6 else socket.AF_INET, protocol)
        self._stack.callback(opened.close)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        return opened


def require() -> None:
    """Raise NotRoot unless this process may send crafted packets."""
    _raw(socket.AF_INET, socket.IPPROTO_RAW).close()


def _raw(family: socket.AddressFamily, protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError:
        raise NotRoot("sending crafted packets needs root (CAP_NET_RAW)", hint="sudo k8snet-trace probe") from None
    except OSError as error:
        raise K8snetError(f"no raw socket: {error.strerror}") from error


def source_address(destination: str) -> str:
    """The address that the calling thread's namespace sends from. Raises K8snetError when there is no way to go."""
    with socket.socket(socket.AF_INET6 if ":" in destination else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((destination, 9))  # sends nothing
        except OSError as error:
            raise no_way(destination, error) from error
        return str(asking.getsockname()[0])


def no_way(destination: str, error: OSError) -> K8snetError:
    """The error of our tree for what the kernel said about sending."""
    why = error.strerror or os.strerror(error.errno or 0)
    return K8snetError(f"nothing can be sent to {destination} from here: {why}", hint="ip route; ip -6 route")


def _messages(sock: socket.socket, v6: bool) -> Iterator[tuple[bytes, str]]:
    """What waits in a raw socket: without the IP header, which IPv4 gives and IPv6 does not."""
    while True:
        try:
            data, peer = sock.recvfrom(65535)
        except BlockingIOError:
            return
        except OSError:  # an ICMP error about what was sent: it comes as a message as well
            continue
        yield (data if v6 else data[(data[0] & 0xF) * 4 :]), str(peer[0]).partition("%")[0]


def _program(v6: bool, lowest: int, highest: int) -> list[tuple[int, int, int, int]]:
    """Classic BPF that keeps what goes to our ports: a node may receive much else (raw sockets get copies of all)."""
    # raw_rcv hands an IPv4 packet from its IP header on, rawv6_rcv an IPv6 packet from its transport header on
    load = [(_LD_HALF, 0, 0, 2)] if v6 else [(_LDX_HEADER_LENGTH, 0, 0, 0), (_LD_HALF_AFTER_HEADER, 0, 0, 2)]
    return [*load, (_JGE, 0, 2, lowest), (_JGT, 1, 0, highest), (_RET, 0, 0, 0xFFFFFFFF), (_RET, 0, 0, 0)]


def _attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    code = array("B", b"".join(_SOCK_FILTER.pack(*instruction) for instruction in program))
    address, _ = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))
