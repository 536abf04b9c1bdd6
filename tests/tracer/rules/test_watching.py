"""A live namespace that is followed: its Services are always those of a first reading, with much less reading."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules.test_refreshing import whole
from tests.tracer.rules.test_rules_truth import FIXTURES
from tracer.rules import live, nfnetlink, watching
from tracer.rules.nfevents import Events
from tracer.rules.watching import Watching

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


@pytest.fixture
def followed(namespace: Namespace) -> Iterator[Watching]:
    one = Watching(namespace.path)
    yield one
    one.close()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """One item for each time that all rules were read."""
    found: list[str | None] = []

    def read_rules(path: str | None) -> object:
        found.append(path)
        return live.read_rules(path)

    monkeypatch.setattr(watching, "read_rules", read_rules)
    return found


def random_changes(seed: int, program: str) -> Iterator[str]:
    """Commands on the nat table of the fixtures; each changes, adds or removes something of kube-proxy's."""
    dice = random.Random(seed)
    text = (FIXTURES / "iptables-nft.save").read_text().split("*nat\n")[1]
    rules = [line for line in text.split("\n") if line.startswith(("-A KUBE-SVC", "-A KUBE-SEP", "-A KUBE-EXT"))]
    for number in range(12):
        rule = dice.choice(rules)
        chain = rule.split()[1]
        kind = dice.randrange(5)
        if kind == 0:
            yield f"{program} -t nat -D {chain} 1"
        elif kind == 1:
            yield f"{program} -t nat -I {chain} 1 -p tcp -j DNAT --to-destination 10.9.9.{number}:80"
        elif kind == 2:
            yield f"{program} -t nat -F {chain}"
        elif kind == 3:
            yield f"{program} -t nat {rule}"
        else:
            new = f"KUBE-SVC-NEW{number}"
            yield (
                f"{program} -t nat -N {new}; {program} -t nat -A {new} -p tcp -j DNAT --to-destination 10.8.8.8:80; "
                f"{program} -t nat -A KUBE-SERVICES -d 10.96.250.{number}/32 -p tcp -m comment "
                f"--comment 'new/service-{number}:http cluster IP' -m tcp --dport 80 -j {new}"
            )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_always_as_if_read_for_the_first_time(
    namespace: Namespace, followed: Watching, readings: list[str | None], variant: str, seed: int
) -> None:
    namespace.sh(f"iptables-{variant}-restore < {FIXTURES / f'iptables-{variant}.save'}")
    assert followed.look()
    assert not followed.look()
    told = 0
    for command in random_changes(seed, f"iptables-{variant}"):
        namespace.sh(f"({command}) || true")  # the rule to be deleted may be gone by now
        told += followed.look()
        assert whole(followed.services) == whole(live.read_services(namespace.path)), command
    assert told > 5
    if variant == "nft":
        assert readings == [namespace.path]  # the first: after that, only chains were read


def test_nftables_mode(namespace: Namespace, followed: Watching) -> None:
    namespace.sh(f"nft -f {FIXTURES / 'nftables.nft'}")
    followed.look()
    elements = namespace.sh("nft list map ip kube-proxy service-ips").split("elements = { ")[1]
    for element in [elements.split(" : ")[0], elements.split(",\n")[1].split(" : ")[0].strip()]:
        namespace.sh(f"nft delete element ip kube-proxy service-ips '{{ {element} }}'")
        assert followed.look()
        assert whole(followed.services) == whole(live.read_services(namespace.path))


def test_a_table_more_and_a_table_less(namespace: Namespace, followed: Watching) -> None:
    namespace.sh(f"iptables-nft-restore < {FIXTURES / 'iptables-nft.save'}")
    followed.look()
    for command in (f"nft -f {FIXTURES / 'nftables.nft'}", "nft delete table ip nat", "nft flush ruleset"):
        namespace.sh(command)
        assert followed.look()
        assert whole(followed.services) == whole(live.read_services(namespace.path)), command
    assert followed.services.services == []


def test_odd_comments_are_read_as_a_whole(namespace: Namespace, followed: Watching, readings: list[str | None]) -> None:
    namespace.sh(f"iptables-nft-restore < {FIXTURES / 'iptables-nft.save'}")
    followed.look()
    namespace.sh("""iptables-nft -t nat -A KUBE-NODEPORTS -m comment --comment 'a "b\n-A KUBE-NODEPORTS' -j RETURN""")
    followed.look()
    assert len(readings) == 2
    assert whole(followed.services) == whole(live.read_services(namespace.path))


class TestEvents:
    @pytest.fixture
    def events(self, namespace: Namespace) -> Iterator[Events]:
        namespace.sh("iptables-nft -t nat -N FIRST")
        one = Events(namespace.path)
        yield one
        one.close()

    def generation(self, namespace: Namespace) -> int:
        return namespace.run(nfnetlink.generation) or 0

    def test_chains_are_named(self, namespace: Namespace, events: Events) -> None:
        namespace.sh("iptables-nft -t nat -A FIRST -j ACCEPT", "iptables-nft -t nat -N SECOND")
        touched = events.take(self.generation(namespace))
        assert (touched.chains, touched.whole, touched.lost) == ({("ip", "nat"): {"FIRST", "SECOND"}}, set(), False)
        assert events.take(self.generation(namespace)).chains == {}

    def test_what_is_more_than_a_chain(self, namespace: Namespace, events: Events) -> None:
        namespace.sh("nft add table ip6 other", "nft add set ip6 other s '{ type ipv6_addr; }'")
        assert events.take(self.generation(namespace)).whole == {("ip6", "other")}

    def test_too_much_at_once_is_lost_and_said_so(
        self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("tracer.rules.nfevents._BUFFER", 4096)
        namespace.sh("iptables-nft -t nat -N FIRST")
        with contextlib.closing(Events(namespace.path)) as events:
            file = tmp_path / "many.save"
            rules = "".join(f"-A FIRST -s 10.0.{n >> 8}.{n & 255} -j ACCEPT\n" for n in range(2000))
            file.write_text(f"*nat\n{rules}COMMIT\n")
            namespace.sh(f"iptables-nft-restore --noflush < {file}")
            assert events.take(self.generation(namespace)).lost

    def test_a_generation_that_is_never_told(self, namespace: Namespace, events: Events) -> None:
        assert events.take(self.generation(namespace) + 1).lost
