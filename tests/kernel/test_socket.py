"""Translation at the socket, as Cilium does it: the process asks for one address and the kernel is told another."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Net, Tracer, open_or_skip
from tests.kernel.traffic import echo, listener
from tests.tracer.networks import Namespace
from tracer import bpf, libbpf, netprograms
from tracer.bpf import program_directory
from tracer.events import IPPROTO_TCP, IPPROTO_UDP, Flag, Outcome, Shape
from tracer.netprograms import SocketHook
from tracer.procfs import cgroup2_mount
from tracer.source.live import LiveSource

pytestmark = pytest.mark.bpf

ASKED, BACKEND = "10.96.9.9", "10.0.2.3"

# Addresses and ports are in network order; user_port is 16 bits in a word of 32.
REDIRECT = """
#include <uapi/linux/bpf.h>
int redirect(struct bpf_sock_addr *ctx)
{
        if (ctx->user_ip4 == ASKED) {
                ctx->user_ip4 = BACKEND;
                ctx->user_port = __builtin_bswap16(8000);
        }
        return 1;
}
"""

# As for a Service without endpoints (bpf/service_lb.c): connect() fails as the program says.
REFUSE = """
#include <uapi/linux/bpf.h>
int refuse(struct bpf_sock_addr *ctx)
{
        if (ctx->user_ip4 != ASKED)
                return 1;
        bpf_set_retval(-111);
        return 0;
}
"""

# Runs in the cgroup and the namespace; says its process id.
CLIENT = """
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
kind, mode, address = getattr(socket, sys.argv[2]), sys.argv[3], (sys.argv[4], int(sys.argv[5]))
with socket.socket(socket.AF_INET, kind) as one:
    one.settimeout(5)
    if mode == "connect":
        one.connect(address)
        one.send(b"hello")
    else:
        one.sendto(b"hello", address)
    if kind == socket.SOCK_DGRAM:
        one.recv(100)
print(os.getpid())
"""


def word(address: str) -> int:
    """An IPv4 address as the little-endian word that holds it in network order."""
    return int.from_bytes(ipaddress.ip_address(address).packed, "little")


@functools.cache
def compiled(text: str, name: str) -> bytes:
    """Instructions of a program without maps, so that they can be loaded again: compiling takes seconds in an emulated
    guest."""
    import bcc

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCC_KERNEL_SOURCE", str(program_directory() / "include" / "kernel"))
        program = bcc.BPF(text=text.encode(), cflags=[f"-DASKED={word(ASKED)}u", f"-DBACKEND={word(BACKEND)}u"])
    library, module, function = bcc.libbcc.lib, ctypes.c_void_p(program.module), name.encode()
    try:
        start, size = library.bpf_function_start(module, function), library.bpf_function_size(module, function)
        return ctypes.string_at(start, size)
    finally:
        program.cleanup()


@contextlib.contextmanager
def redirected(text: str = REDIRECT, name: str = "redirect") -> Iterator[Path]:
    """A cgroup whose processes meet a program at the socket, which redirects them from ASKED to BACKEND by default."""
    mount = cgroup2_mount()
    assert mount is not None
    path = Path(mount, f"k8snet-test-{secrets.token_hex(4)}")
    path.mkdir()
    instructions = compiled(text, name)
    descriptors = [os.open(path, os.O_RDONLY)]
    try:
        for hook in (SocketHook.CONNECT4, SocketHook.SENDMSG4):
            descriptors.append(netprograms.load_socket_program(hook, name, instructions))
            descriptors.append(netprograms.link_to_cgroup(hook, descriptors[-1], descriptors[0]))
        yield path
    finally:
        for descriptor in reversed(descriptors):
            os.close(descriptor)
        path.rmdir()


@pytest.fixture(scope="module")
def cgroup(backend: str) -> Iterator[Path]:
    """Such a cgroup for the tests of one backend but the first: compiling takes seconds in an emulated guest."""
    with redirected() as path:
        yield path


@pytest.fixture(scope="module")
def attached(cgroup: Path, backend: str) -> Iterator[LiveSource]:
    """A backend of this module's own: once it has seen such a program, the tracepoint backend sees more than before."""
    with open_or_skip(backend) as source:
        yield source


def call(namespace: Namespace, cgroup: Path, kind: str, mode: str, address: str = ASKED, port: int = 80) -> int:
    """Run the client in the cgroup; returns its process id."""
    code, printed, complaint = run_client(namespace, str(cgroup), kind, mode, address, str(port))
    assert code == 0, complaint
    return int(printed)


def run_client(namespace: Namespace, *arguments: str) -> tuple[int, str, str]:
    """Run CLIENT, with Python's own library alone: what else is installed takes a second to look at in a guest. Returns
    the exit code and what it printed."""
    pipe = subprocess.PIPE
    with namespace.start(sys.executable, "-S", "-c", CLIENT, *arguments, stdout=pipe, stderr=pipe) as process:
        printed, complaint = process.communicate()
    return process.returncode, printed, complaint


def addresses(shape: Shape) -> tuple[str, int, str, int]:
    """Destination and backend as text."""
    destination, backend = (str(ipaddress.ip_address(packed[:4])) for packed in (shape.destination, shape.backend))
    return destination, shape.dport, backend, shape.bport


def test_a_program_that_comes_later_is_noticed(
    net: Net, open_backend: Callable[..., LiveSource], patience: float
) -> None:
    client, _, server = net
    until = time.monotonic() + 5 * patience
    while libbpf.has_socket_address_programs():  # the kernel lets go of another test's in its own time
        if time.monotonic() > until:
            pytest.skip("this machine rewrites addresses at the socket by itself (Cilium?)")
        time.sleep(0.05)
    with open_backend() as source, listener(server, "0.0.0.0", 8000):
        tracer = Tracer(source, patience)
        assert tracer.source.sees_connect is (source.backend != "tracepoint")
        with redirected() as group:
            until = time.monotonic() + 20 * patience
            while not source.sees_connect:  # it looks twice a second, as long as it is read
                assert time.monotonic() < until
                source.read(0.1)
            call(client, group, "SOCK_STREAM", "connect")
            (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (ASKED, 80, BACKEND, 8000)


def test_where_such_a_program_is_to_come_connect_is_watched_from_the_start(
    open_backend: Callable[..., LiveSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "has_socket_address_programs", lambda: False)
    with open_backend(rewrites_expected=True) as source:
        assert source.sees_connect


def test_the_trace_goes_on_while_it_prepares_for_such_a_program(
    open_backend: Callable[..., LiveSource],
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """To compile takes seconds on a busy machine. What others write to descriptor 2 meanwhile is not lost."""
    caught = bpf._caught_stderr

    @contextlib.contextmanager
    def slow() -> Iterator[Any]:
        with caught() as written:
            time.sleep(1.5 * patience)
            yield written

    monkeypatch.setattr(libbpf, "has_socket_address_programs", lambda: False)
    with open_backend() as source:
        if source.sees_connect:
            return  # it has nothing to prepare
        monkeypatch.setattr(bpf, "_caught_stderr", slow)
        monkeypatch.setattr(libbpf, "has_socket_address_programs", lambda: True)
        until, lines, meanwhile = time.monotonic() + 20 * patience, 0, 0
        while not source.sees_connect:
            assert time.monotonic() < until
            source.read(0.05)
            meanwhile += any(thread.name == "connect()" for thread in threading.enumerate())
            os.write(2, b"%d\n" % lines)
            lines += 1
    assert meanwhile > 3
    assert [int(line) for line in capfd.readouterr().err.split()] == list(range(lines))


def test_tcp(cgroup: Path, net: Net, tracer: Tracer) -> None:
    client, _, server = net
    with listener(server, "0.0.0.0", 8000):
        pid = call(client, cgroup, "SOCK_STREAM", "connect")
    (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (ASKED, 80, BACKEND, 8000)
    assert (record.shape.protocol, record.shape.flags, record.shape.pid) == (IPPROTO_TCP, Flag.SOCKET, pid)
    assert record.shape.outcome == Outcome.ESTABLISHED
    assert record.shape.nat_netns == 0


@pytest.mark.parametrize("mode", ["connect", "sendto"])
def test_udp(cgroup: Path, net: Net, tracer: Tracer, mode: str) -> None:
    client, _, server = net
    with echo(server, BACKEND, 8000):
        # No program for recvmsg changes the answer's source back: an unconnected socket takes it all the same.
        call(client, cgroup, "SOCK_DGRAM", mode)
    (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (ASKED, 80, BACKEND, 8000)
    assert (record.shape.protocol, record.shape.flags) == (IPPROTO_UDP, Flag.SOCKET)
    assert record.shape.outcome == Outcome.ANSWERED


def test_what_is_left_as_it_was_is_no_translation(cgroup: Path, net: Net, tracer: Tracer) -> None:
    client, _, server = net
    with listener(server, "0.0.0.0", 8000):
        call(client, cgroup, "SOCK_STREAM", "connect", BACKEND, 8000)
    (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (BACKEND, 8000, "0.0.0.0", 0)
    assert record.shape.flags == 0


def test_both_ways_of_translation_at_once(cgroup: Path, net: Net, tracer: Tracer) -> None:
    """The socket's new destination is itself rewritten by a rule: the backend is the last of them."""
    client, router, server = net
    rule = f"-A PREROUTING -d {BACKEND} -p tcp --dport 8000 -j DNAT --to-destination 10.0.2.4:8001"
    router.iptables(rule, table="nat")
    with listener(server, "0.0.0.0", 8001):
        call(client, cgroup, "SOCK_STREAM", "connect")
    (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (ASKED, 80, "10.0.2.4", 8001)
    assert record.shape.flags == Flag.SOCKET | Flag.DNAT
    assert record.shape.nat_netns == router.inode


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_connect_that_a_program_refuses_is_told_without_a_packet(
    cgroup: Path, net: Net, tracer: Tracer, kind: str
) -> None:
    """Beside the fixture's programs, which keep the tracepoint backend looking."""
    client, _, _ = net
    with redirected(REFUSE, "refuse") as refusing:
        _, _, complaint = run_client(client, str(refusing), kind, "connect", ASKED, "80")
    assert "ConnectionRefusedError" in complaint
    (record,) = tracer.collect(1, client)
    assert addresses(record.shape) == (ASKED, 80, "0.0.0.0", 0)
    assert (record.shape.outcome, record.shape.errno, record.shape.flags) == (Outcome.REJECTED, 111, 0)
    assert record.shape.protocol == (IPPROTO_TCP if kind == "SOCK_STREAM" else IPPROTO_UDP)
