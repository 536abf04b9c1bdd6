"""A network to probe, and the only one that the prober finds: the machine's other namespaces may hold anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.tracer.networks import Namespace, routed
from tracer import netns
from tracer.probe.conduct import Wishes
from tracer.probe.run import Plan

Net = tuple[Namespace, Namespace, Namespace]  # client, router, server


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """client — router — server, see tests.tracer.networks.routed; the router sends to Services through the server."""
    with routed() as made:
        _, router, _ = made
        router.sh("ip route add default via 10.0.2.2", "ip -6 route add default via fd00:2::2")
        monkeypatch.setattr(netns, "every", lambda: {one.inode: one.path for one in made})
        yield made


@pytest.fixture
def wishes(patience: float) -> Callable[..., Wishes]:
    """What is asked of a probe from a namespace: quick, and without names."""

    def make(namespace: Namespace, count: int = 37, *, rate: float = 500, timeout: float = 0.5) -> Wishes:
        return Wishes(Plan(count, rate, timeout * patience), namespace.path, with_names=False)

    return make


def never() -> bool:
    """Nobody stops this probe."""
    return False
