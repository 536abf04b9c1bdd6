"""What can't be kept is counted, and two tracers do not disturb each other."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest

from tests.kernel.conftest import Net, Tracer
from tests.kernel.traffic import connect, listener
from tracer.source.live import LiveSource

pytestmark = pytest.mark.bpf


def test_a_full_ring_buffer_counts_losses(open_backend: Callable[..., LiveSource], net: Net, patience: float) -> None:
    client, _, server = net
    with open_backend(ring_bytes=mmap.PAGESIZE) as source, listener(server, "10.0.2.2", 80):
        tracer = Tracer(source, patience)
        for _ in range(137):
            connect(client, "10.0.2.2", 80)
        kept = len(tracer.collect(137, client, seconds=1))
        # Other connections of the machine may have been lost, or kept, beside ours.
        assert 0 < kept <= mmap.PAGESIZE // 128
        assert source.losses()["ring buffer"] >= 137 - mmap.PAGESIZE // 128
        # The trace goes on; others on the machine may fill so small a buffer once more.
        assert any(connect(client, "10.0.2.2", 80) and tracer.collect(1, client, seconds=1) for _ in range(5))


def test_two_tracers_see_the_same(open_backend: Callable[..., LiveSource], net: Net, patience: float) -> None:
    client, _, server = net
    with open_backend() as one, open_backend() as other, listener(server, "10.0.2.2", 80):
        tracers = [Tracer(source, patience) for source in (one, other)]
        ports = [connect(client, "10.0.2.2", 80) for _ in range(7)]
        for tracer in tracers:
            seen = tracer.collect(7, client)
            assert [record.raw.sport for record in seen] == ports
