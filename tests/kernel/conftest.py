"""A backend, attached, and what it says of the connections of the namespaces that a test made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests import needs
from tests.tracer.networks import Namespace, routed
from tracer.errors import BackendUnavailable
from tracer.events import RawConnection, Shape
from tracer.source.live import BACKENDS, LiveSource

CLOCK_SLACK_NS = 50_000_000

Net = tuple[Namespace, Namespace, Namespace]  # client, router, server


@dataclass(frozen=True)
class Seen:
    """A record: the raw one, and its shape."""

    raw: RawConnection
    shape: Shape


class Tracer:
    """A backend that tells of given namespaces only, and of what was asked since it was made: other tests, and the
    machine itself, connect too, and inodes of namespaces are used again.
    """

    def __init__(self, source: LiveSource, patience: float) -> None:
        self.source = source
        self._patience = patience
        # The programs learn of the clock when the source is read, and between tests nobody reads it.
        self._since = time.time_ns() - CLOCK_SLACK_NS

    def collect(self, count: int, *namespaces: Namespace, seconds: float = 5) -> list[Seen]:
        """Wait for `count` records of the namespaces' sockets, and a moment more for one too many; for none, all of
        `seconds`.
        """
        inodes = {namespace.inode for namespace in namespaces}
        seen: list[Seen] = []
        deadline = time.monotonic() + seconds * (self._patience if count else 1)
        while time.monotonic() < deadline:
            for item in self.source.read(0.1):
                raw = RawConnection._make(item)
                shape = Shape.unpack(raw.shape)
                if shape.netns in inodes and raw.time_ns >= self._since:
                    seen.append(Seen(raw, shape))
            if 0 < count <= len(seen) and deadline > time.monotonic() + 0.3:
                deadline = time.monotonic() + 0.3
        return seen


@contextlib.contextmanager
def inhabited(namespace: Namespace) -> Iterator[None]:
    """A process in the namespace, as every node has: that is how the tracer finds its connection-tracking table."""
    process = namespace.start("sleep", "600")
    try:
        yield
    finally:
        process.kill()
        process.wait()


def open_or_skip(backend: str, **options: int) -> LiveSource:
    """The backend attached, or the test skipped with the kernel's reason; failed where this backend is required."""
    try:
        return LiveSource(backend, **options)
    except BackendUnavailable as error:
        if backend in needs.required_backends():
            pytest.fail(f"{backend}: {error.message}", pytrace=False)
        pytest.skip(f"{backend}: {error.message}")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; the matrix of scripts/vmtest counts by it."""
    return str(request.param)


@pytest.fixture
def open_backend(backend: str) -> Callable[..., LiveSource]:
    """Open the backend with options of the test's own, or after something that the test does."""
    return lambda **options: open_or_skip(backend, **options)


@pytest.fixture(scope="session")
def attached(backend: str) -> Iterator[LiveSource]:
    """The backend, attached once for all tests: compiling takes seconds in an emulated guest."""
    with open_or_skip(backend) as source:
        yield source


@pytest.fixture
def tracer(attached: LiveSource, patience: float) -> Tracer:
    """The backend, for one test."""
    return Tracer(attached, patience)


@pytest.fixture
def net() -> Iterator[Net]:
    """client — router — server, see tests.tracer.networks.routed."""
    with routed() as made:
        yield made
