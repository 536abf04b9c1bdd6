"""How readers grow: with the number of rules, and no faster."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable

import pytest

from tests.tracer.rules import scale
from tracer.rules.iptables_save import read_save
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import RuleSet
from tracer.rules.nft_text import read_nft_text

SIZES = (100, 1000, 10_000)


def fastest(work: Callable[[], object], times: int = 2) -> float:
    """Seconds of processor time, the best of some runs: the machine may have other things to do.

    As in a process of its own: what thousands of other tests have left in memory is not walked by the collector.
    """
    best = float("inf")
    gc.collect()
    gc.freeze()
    try:
        for _ in range(times):
            gc.collect()
            began = time.thread_time()
            work()
            best = min(best, time.thread_time() - began)
    finally:
        gc.unfreeze()
    return best


def assert_linear(times: dict[int, float]) -> None:
    """Ten times the rules may take at most fifty times as long: what no longer fits into a cache takes longer, too. (If
    it grew by the square, a hundred.)
    """
    for smaller, larger in itertools.pairwise(SIZES):
        assert times[larger] < 50 * times[smaller] + 0.02, times


def test_splitting_is_linear_and_quick(patience: float) -> None:
    """12 MB in at most 0.6 s."""
    texts = {size: scale.iptables_save(size) for size in SIZES}
    times = {size: fastest(lambda text=text: read_save(text)) for size, text in texts.items()}  # type: ignore[misc]
    assert_linear(times)
    megabytes = len(texts[10_000]) / 1e6
    assert megabytes > 12
    assert times[10_000] / megabytes * 12 < 0.6 * patience, times


def test_reading_nft_text_is_linear_and_quick(patience: float) -> None:
    texts = {size: scale.nftables(size) for size in SIZES}
    times = {size: fastest(lambda text=text: read_nft_text(text)) for size, text in texts.items()}  # type: ignore[misc]
    assert_linear(times)
    assert times[10_000] < 0.6 * patience, times


@pytest.mark.slow
def test_nft_service_map_is_linear(patience: float) -> None:
    read = {size: read_nft_text(scale.nftables(size)) for size in SIZES}
    times = {size: fastest(lambda rules=rules: service_map(rules)) for size, rules in read.items()}  # type: ignore[misc]
    assert_linear(times)
    assert times[10_000] < 2.0 * patience, times
    book = service_map(read[100])
    assert [len(port.endpoints) for port in book.services] == [3] * 100
    assert book.find("TCP", scale.cluster_ip(50), 80) is not None


@pytest.mark.slow
def test_service_map_is_linear(patience: float) -> None:
    read = {size: read_save(scale.iptables_save(size)) for size in SIZES}
    times = {size: fastest(lambda rules=rules: service_map(rules)) for size, rules in read.items()}  # type: ignore[misc]
    assert_linear(times)
    assert times[10_000] < 2.0 * patience, times


@pytest.fixture(scope="module")
def large() -> RuleSet:
    return read_save(scale.iptables_save(10_000))


def test_every_service_of_many_is_right(large: RuleSet) -> None:
    book = service_map(large)
    assert len(book.services) == 10_000
    for number in (0, 1, 4999, 9999):
        found = book.find("TCP", scale.cluster_ip(number), 80)
        assert found is not None
        port, address = found
        assert f"{port.namespace}/{port.name}:{port.port_name}" == scale.service_name(number)
        for endpoint in range(3):
            backend = book.backend(port, address, scale.endpoint_ip(number, endpoint), 8080)
            assert backend is not None
            assert backend.probability == pytest.approx(1 / 3, abs=1e-9)


def test_look_up_takes_no_longer_in_a_large_map(large: RuleSet) -> None:
    small_book, large_book = service_map(read_save(scale.iptables_save(100))), service_map(large)

    def look_up(book: object) -> Callable[[], None]:
        def work() -> None:
            for _ in range(20_000):
                book.find("TCP", scale_ip, 80)  # type: ignore[attr-defined]

        return work

    scale_ip = scale.cluster_ip(50)
    assert fastest(look_up(large_book)) < 3 * fastest(look_up(small_book)) + 0.01
