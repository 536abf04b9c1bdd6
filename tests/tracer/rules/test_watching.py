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


def nftables_changes(seed: int) -> Iterator[str]:
    """Transactions of kube-proxy's nftables mode: endpoints come and go, Services too."""
    dice = random.Random(seed)
    table = "ip kube-proxy"
    for number in range(10):
        service, endpoint = f"{table} service-NEWNEW0{number % 3}-new/{number % 3}/tcp/p", f"{table} endpoint-{number}"
        key = f"10.96.250.{number % 3} . tcp . 80"
        lines = [f"add chain {endpoint}", f"flush chain {endpoint}", f"add chain {service}"]
        lines.append(f"add rule {endpoint} ip saddr 10.1.1.{number} jump mark-for-masquerade")
        lines.append(f"add rule {endpoint} meta l4proto tcp dnat to 10.1.1.{number}:80")
        goto = f"goto endpoint-{number}"
        choice = f"numgen random mod 2 vmap {{ 0 : {goto}, 1 : {goto} }}" if dice.random() < 0.5 else goto
        lines.append(f"{dice.choice(['add', 'insert'])} rule {service} {choice}")
        if number > 5:
            lines.insert(3, f"flush chain {service}")
        if number < 3:
            lines.append(f"add element {table} service-ips {{ {key} : goto {service.split()[-1]} }}")
            lines.append(f"add element {table} cluster-ips {{ 10.96.250.{number} }}")
        yield "\n".join(lines)
    yield f"delete element {table} service-ips {{ 10.96.250.1 . tcp . 80 }}"
    name = f"{table} service-NEWNEW01-new/1/tcp/p"
    yield f"flush chain {name}\ndelete chain {name}"
    yield "add table ip other\nadd chain ip other c\nadd rule ip other c counter accept\ndelete table ip other"


@pytest.mark.parametrize("seed", range(3))
def test_nftables_mode_by_what_nft_says_of_changes(
    namespace: Namespace,
    followed: Watching,
    readings: list[str | None],
    tmp_path: Path,
    seed: int,
) -> None:
    namespace.sh(f"nft -f {FIXTURES / 'nftables.nft'}")
    followed.look()
    file = tmp_path / "changes.nft"
    for number in range(50):  # until nft is ready to tell
        namespace.sh(f"nft add chain ip kube-proxy ready-{number}")
        before = len(readings)
        followed.look()
        if len(readings) == before:
            break
    readings.clear()
    for text in nftables_changes(seed):
        file.write_text(text + "\n")
        namespace.sh(f"nft -f {file}")
        assert followed.look()
        assert whole(followed.services) == whole(live.read_services(namespace.path)), text
    assert readings == []
    named = followed.services.named("new/*")
    assert [service.name for service in named] == ["0", "2"]
    # what can't be followed is read
    namespace.sh("nft add set ip kube-proxy affinity-X '{ type ipv4_addr; flags dynamic,timeout; timeout 1h; }'")
    assert followed.look()
    assert len(readings) == 1
    namespace.sh("nft delete table ip kube-proxy")
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
