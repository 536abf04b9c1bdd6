"""Rules that are read again and again: always the map that a first reading would give, with less work."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.rules import scale
from tests.tracer.rules.test_rules_truth import FIXTURES
from tests.tracer.rules.test_service_map import LETS_SHIP_IT
from tracer.rules.files import read_text
from tracer.rules.iptables_save import read_save
from tracer.rules.kubeproxy import service_map
from tracer.rules.refreshing import Refreshing, changed_chains
from tracer.rules.routes import Routes
from tracer.rules.services import ServiceMap

SAVE, NFT = "iptables-legacy.save", "nftables.nft"
TEXTS = {name: (FIXTURES / name).read_text().split("\n") for name in (SAVE, NFT)}
MATTERING = {SAVE: ("-A KUBE-",), NFT: ("goto", "dnat", "timeout")}
PLACES = {
    name: [index for index, line in enumerate(lines) if any(word in line for word in MATTERING[name])]
    for name, lines in TEXTS.items()
}


def changed_line(name: str, line: str, other: str, drop: bool) -> str:
    """Another line that its reader takes: none, or one that leads elsewhere."""
    if name == NFT:
        return line.replace("numgen random", "numgen inc") if drop else line.replace("dnat to 10.", "dnat to 11.")
    return "" if drop else " ".join([*line.split()[:2], *other.split()[2:]])  # it stays in its chain: -A CHAIN


def whole(book: ServiceMap) -> list[object]:
    """All that a map says, the ways through chains included, which do not count in comparisons."""
    return [(port, [address.branches for address in port.addresses]) for port in book.services]


@pytest.mark.parametrize("name", sorted(TEXTS))
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_as_if_read_for_the_first_time(name: str, data: st.DataObject) -> None:
    """Lines of rules go, change places and come back, again and again."""
    refreshing = Refreshing()
    changes = st.lists(
        st.tuples(st.sampled_from(PLACES[name]), st.sampled_from(PLACES[name]), st.booleans()), max_size=3
    )
    for _ in range(3):
        lines = list(TEXTS[name])
        for at, other, drop in data.draw(changes):
            lines[at] = changed_line(name, TEXTS[name][at], TEXTS[name][other], drop)
        rules = read_text("\n".join(lines), name)
        refreshing.update(rules)
        assert whole(refreshing.services) == whole(service_map(rules))


def test_the_same_rules_are_no_change() -> None:
    refreshing = Refreshing()
    assert refreshing.update(read_save(LETS_SHIP_IT))
    before = refreshing.services
    assert not refreshing.update(read_save("# Generated at another time\n" + LETS_SHIP_IT))
    assert refreshing.services is before


def test_tables_that_come_and_go() -> None:
    refreshing = Refreshing()
    assert refreshing.update(read_save(LETS_SHIP_IT))
    assert refreshing.update(read_save(""))
    assert refreshing.services.services == []
    assert refreshing.update(read_save(LETS_SHIP_IT))
    assert whole(refreshing.services) == whole(service_map(read_save(LETS_SHIP_IT)))


def test_only_what_changed_is_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = scale.iptables_save(50)
    refreshing = Refreshing()
    refreshing.update(read_save(text))
    walked: list[str] = []
    walk = Routes._walk
    monkeypatch.setattr(Routes, "_walk", lambda self, chain: walked.append(chain.name) or walk(self, chain))
    endpoint = scale.endpoint_ip(7, 1)
    assert refreshing.update(read_save(text.replace(f"--to-destination {endpoint}:", "--to-destination 10.9.9.9:")))
    assert walked == [scale.service_chain(7)]
    (port,) = refreshing.services.named("service-7")
    assert [end.ip for end in port.endpoints] == [scale.endpoint_ip(7, 0), "10.9.9.9", scale.endpoint_ip(7, 2)]


def test_changed_chains() -> None:
    (before,) = read_save(LETS_SHIP_IT).tables
    text = LETS_SHIP_IT.replace("10.244.0.12:8000", "10.244.0.12:80").replace("KUBE-EXT-SHIP", "KUBE-EXT-NEW")
    (after,) = read_save(text).tables
    assert changed_chains(before, after) == {"KUBE-SEP-TWO", "KUBE-EXT-SHIP", "KUBE-EXT-NEW", "KUBE-NODEPORTS"}
    assert changed_chains(after, after) == set()


def test_loops_of_chains_are_seen_through() -> None:
    chains = "".join(f":{name} - [0:0]\n" for name in "ABC")
    text = f"*nat\n{chains}-A A -j B\n-A B -j A\n-A B -j C\n-A C -j DNAT --to-destination 10.0.0.1:1\nCOMMIT\n"
    (before,), (after,) = read_save(text).tables, read_save(text.replace("10.0.0.1", "10.0.0.2")).tables
    routes = Routes(before)
    assert routes.of("A").branches
    again = routes.after(after, changed_chains(before, after) or ())
    assert [next(iter(branch.backends)) for branch in again.of("A").branches] == [("10.0.0.2", 1)]
