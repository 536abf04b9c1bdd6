"""What all tests share: which of them run here, how patient they are, and the fixtures that more than one package uses.

Markers (pyproject.toml): `root` and `bpf` tests skip on a laptop that lacks the need, with the reason and the command
that mends it, and fail in CI. `vm` tests are left out (deselected) everywhere but in a guest of scripts/vmtest.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.labs.lab import MANIFEST, Lab

_MARKERS: dict[str, Callable[[], needs.Missing | None]] = {"root": needs.root, "bpf": needs.bpf}


def pytest_configure() -> None:
    """Take signals back that `nohup`, or a shell for what it runs in the background, had ignored: programs inherit
    that, and some tests send them these very signals."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `vm` tests where there is no guest, and tests of backends that were not chosen; mark those that run
    alone, and say in the JUnit report which backend a test is about.
    """
    alone = tuple(Path(__file__).parent / name for name in needs.ALONE)
    for item in items:
        if any(item.path.is_relative_to(path) for path in alone):
            item.add_marker("alone")
        backend = _backend(item)
        if backend is not None:
            item.user_properties.append(("backend", backend))
    chosen = needs.chosen_backends()
    left_out = [item for item in items if not needs.in_guest() and item.get_closest_marker("vm")]
    left_out += [item for item in items if (_backend(item) or next(iter(chosen))) not in chosen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _backend(item: pytest.Item) -> str | None:
    """The backend that a test is about: the value of its parameter `backend`, or the word of its marker."""
    callspec = getattr(item, "callspec", None)
    marker = item.get_closest_marker("backend")
    backend = callspec.params.get("backend") if callspec is not None else None
    if backend is None and marker is not None:
        (backend,) = marker.args
    return backend if backend in needs.BACKENDS else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or in CI fail, a test whose marker names a need that this machine does not meet."""
    lacking(need() for name, need in _MARKERS.items() if item.get_closest_marker(name))


def lacking(found: Iterable[needs.Missing | None]) -> None:
    """Skip for the first thing missing, or fail where missing things must not go unseen (CI)."""
    missing = next((one for one in found if one is not None), None)
    if missing is None:
        return
    if needs.in_ci():
        pytest.fail(str(missing), pytrace=False)
    pytest.skip(str(missing))


@pytest.fixture(scope="session")
def patience() -> float:
    """The factor that tests multiply their time limits with: 1, or K8SNET_SLOW in an emulated guest."""
    return needs.slowness()


# --- cluster: owned by the tests of labs/cluster ---
@pytest.fixture(scope="session")
def cluster() -> Iterator[Lab]:
    """A miniature cluster with two nodes and the Services of tests/labs/shop.yaml, under a name of its own; for tests
    marked `root` that change nothing in it."""
    with Lab(("-f", str(MANIFEST))) as running:
        yield running


# --- end of cluster ---
