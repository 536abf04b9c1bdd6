"""What goes between a container runtime and its client: of any length, with descriptors."""

from __future__ import annotations

import os
import socket

import pytest

from labs.cluster.runtime.messages import MAX_PACKET, receive, send


@pytest.mark.parametrize("length", [0, MAX_PACKET - 100, MAX_PACKET, 1 << 20])
def test_a_message_of_any_length_arrives_with_its_descriptors(length: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would open one more
    message = {"text": "x" * length, "number": 1}
    with ours, theirs:
        send(ours, message, [writer])
        send(ours, {"op": "next"})
        got, fds = receive(theirs)
        assert got == message
        (copy,) = fds
        os.write(copy, b"hello")
        assert os.read(reader, 10) == b"hello"
        os.close(copy)
        assert receive(theirs) == ({"op": "next"}, [])
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(reader)
    os.close(writer)


def test_the_other_side_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        assert receive(theirs) == (None, [])
