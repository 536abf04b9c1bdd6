"""The live kernel: what is loaded into namespaces of our own is read from there, and reading changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules import scale
from tests.tracer.rules.rule_texts import TARGETS, rules
from tests.tracer.rules.test_iptables_save import significant
from tests.tracer.rules.test_rules_truth import FIXTURES, services
from tracer.errors import K8snetError, MissingError, ToolMissing
from tracer.rules import live, nfnetlink
from tracer.rules.changes import state
from tracer.rules.iptables_save import read_save, write_save
from tracer.rules.model import Match, Origin, Rule
from tracer.rules.services import ServiceMap

pytestmark = pytest.mark.root

LEGACY = (("iptables-legacy-restore", "iptables-legacy.save"), ("ip6tables-legacy-restore", "ip6tables-legacy.save"))
NFT = (("iptables-nft-restore", "iptables-nft.save"), ("ip6tables-nft-restore", "ip6tables-nft.save"))
NFTABLES = (("nft -f", "nftables.nft"),)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


def load(namespace: Namespace, *pairs: tuple[str, str]) -> None:
    for program, file in pairs:
        namespace.sh(f"{program} {'' if program.startswith('nft') else '<'} {FIXTURES / file}")


def documents(book: ServiceMap) -> list[dict[str, object]]:
    """For comparison across kernels: endpoints in order of their addresses."""
    found = book.to_json()
    for document in found:
        for key in ("addresses", "endpoints", "local_endpoints"):
            document[key] = sorted(document[key], key=str)
    return found


@pytest.mark.parametrize(
    ("pairs", "form"), [(LEGACY, "iptables-legacy"), (NFT, "iptables-nft"), (NFTABLES, "nftables-text")]
)
def test_live_rules_are_those_of_the_file(namespace: Namespace, pairs: tuple[tuple[str, str], ...], form: str) -> None:
    load(namespace, *pairs)
    assert documents(live.read_services(namespace.path)) == documents(services(form))


def test_all_engines_together(namespace: Namespace) -> None:
    load(namespace, LEGACY[0], NFT[1], *NFTABLES)
    rules = live.read_rules(namespace.path)
    found = {(table.family, table.name): table.origin for table in rules.tables}
    assert found[("ip", "nat")] is Origin.LEGACY
    assert found[("ip6", "nat")] is Origin.IPTABLES_NFT
    assert found[("ip", "kube-proxy")] is found[("ip6", "kube-proxy")] is Origin.NFTABLES
    assert rules.notes == []


def test_reading_an_untouched_namespace_creates_nothing(namespace: Namespace) -> None:
    before = everything(namespace)
    assert live.read_rules(namespace.path).tables == []
    assert live.read_services(namespace.path).services == []
    assert state(namespace.path).untouched
    assert everything(namespace) == before == "|"


def test_reading_creates_no_further_table(namespace: Namespace) -> None:
    """One legacy table of one family and one of iptables-nft exist; asking for others would bring them about."""
    namespace.sh("iptables-legacy -t nat -N MINE", "ip6tables-nft -t mangle -N MINE")
    before = everything(namespace)
    assert {(table.family, table.name) for table in live.read_rules(namespace.path).tables} == {
        ("ip", "nat"),
        ("ip6", "mangle"),
    }
    state(namespace.path)
    assert everything(namespace) == before


def everything(namespace: Namespace) -> str:
    """All tables that the kernel has there, by means that make none."""
    names = [f"/proc/thread-self/net/{name}_tables_names" for name in ("ip", "ip6")]
    legacy = namespace.run(lambda: [Path(name).read_text() for name in names if Path(name).exists()])
    return "".join(legacy) + "|" + namespace.sh("nft list tables").strip()


@pytest.mark.parametrize("pair", [LEGACY[0], LEGACY[1], NFT[0], NFT[1]])
def test_what_we_write_the_kernel_takes_and_gives_back(
    namespace: Namespace, tmp_path: Path, pair: tuple[str, str]
) -> None:
    restore, file = pair
    family = "ip6" if file.startswith("ip6") else "ip"
    written = tmp_path / "rules.save"
    written.write_text(write_save(read_save((FIXTURES / file).read_text()), family))
    namespace.sh(f"{restore} -c < {written}")
    saved = namespace.sh(restore.replace("-restore", "-save"))
    assert sorted(significant(saved)) == sorted(significant((FIXTURES / file).read_text()))


@pytest.fixture(scope="module")
def shared_namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), table=st.sampled_from(sorted(TARGETS)))
@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_random_rules_come_back_as_they_were_read(
    shared_namespace: Namespace, variant: str, data: st.DataObject, table: str
) -> None:
    """The kernel gets what we believe to be rules and says what it understood: both must be read alike."""
    drawn = data.draw(st.lists(rules(table), min_size=1, max_size=12))
    text = "\n".join([f"*{table}", ":A - [0:0]", ":B - [0:0]", *(f"-A A {rule}" for rule, _, _ in drawn), "COMMIT", ""])
    with tempfile.NamedTemporaryFile("w", suffix=".save") as file:
        file.write(text)
        file.flush()
        shared_namespace.sh(f"iptables-{variant}-restore < {file.name}")
    saved = read_save(shared_namespace.sh(f"iptables-{variant}-save"))
    found = saved.table("ip", table)
    assert found is not None
    assert [in_any_order(rule) for rule in found.chains["A"].rules] == [
        in_any_order(Rule("", parts, comment)) for _, parts, comment in drawn
    ]


def in_any_order(rule: Rule) -> tuple[list[str], str | None]:
    """A rule's parts, the values of each sorted: iptables-save has its own order of conntrack's states."""
    parts = [
        part._replace(values=tuple(sorted(part.values))) if isinstance(part, Match) else part for part in rule.parts
    ]
    return [repr(part) for part in parts], rule.comment


def test_tables_that_only_bear_the_names_of_iptables(namespace: Namespace) -> None:
    """iptables-nft-save prints such a table, empty and with other policies, and says that nft is to be asked."""
    namespace.sh(
        "nft 'table ip nat { chain prerouting { type nat hook prerouting priority -100; accept ; } ; }'",
        "nft 'table ip filter { chain input { type filter hook input priority 0; policy drop; accept ; } ; }'",
        "iptables-nft -t mangle -A INPUT -j ACCEPT",
    )
    rules = live.read_rules(namespace.path)
    found = [(table.name, table.origin, list(table.chains)) for table in rules.tables]
    assert found == [
        ("nat", Origin.NFTABLES, ["prerouting"]),
        ("filter", Origin.NFTABLES, ["input"]),
        ("mangle", Origin.IPTABLES_NFT, ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ]
    assert rules.tables[1].chains["input"].policy == "drop"
    assert rules.notes == []


class TestState:
    def test_each_change_of_legacy_rules_that_adds_or_removes_shows(self, namespace: Namespace) -> None:
        load(namespace, LEGACY[0])
        seen = [state(namespace.path)]
        for command in (
            "iptables-legacy -t nat -N NEW",
            "iptables-legacy -t nat -A NEW -d 10.0.0.1 -j ACCEPT",
            "iptables-legacy -t nat -D NEW 1",
            "ip6tables-legacy -t nat -N NEW",
        ):
            namespace.sh(command)
            seen.append(state(namespace.path))
            assert seen[-1] != seen[-2], command
        assert state(namespace.path) == seen[-1]

    @pytest.mark.parametrize("program", ["iptables-nft -t nat", "ip6tables-nft -t filter"])
    def test_each_transaction_of_nf_tables_shows(self, namespace: Namespace, program: str) -> None:
        seen = [state(namespace.path)]
        for command in (f"{program} -N NEW", f"{program} -A NEW -j ACCEPT", f"{program} -R NEW 1 -j RETURN"):
            namespace.sh(command)
            seen.append(state(namespace.path))
            assert seen[-1] != seen[-2], command
        assert not seen[-1].untouched
        assert state(namespace.path) == seen[-1]

    def test_reading_is_no_change(self, namespace: Namespace) -> None:
        load(namespace, LEGACY[0], NFT[1], *NFTABLES)
        before = state(namespace.path)
        live.read_rules(namespace.path)
        assert state(namespace.path) == before

    def test_one_endpoint_for_another_is_not_seen_in_legacy_tables(self, namespace: Namespace) -> None:
        """The limit that changes.py tells of: should the kernel ever tell more, this test wants to be changed."""
        namespace.sh("iptables-legacy -t nat -A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.1:80")
        before = state(namespace.path)
        namespace.sh("iptables-legacy -t nat -R OUTPUT 1 -p tcp -j DNAT --to-destination 10.0.0.2:80")
        assert state(namespace.path) == before


class TestNetlink:
    def test_tables(self, namespace: Namespace) -> None:
        assert namespace.run(nfnetlink.tables) == []
        namespace.sh("nft add table inet one", "nft add table ip6 two", "nft add table bridge three")
        assert set(namespace.run(nfnetlink.tables)) == {("inet", "one"), ("ip6", "two"), ("bridge", "three")}

    def test_many_tables(self, namespace: Namespace, tmp_path: Path) -> None:
        script = tmp_path / "many.nft"
        script.write_text("".join(f"add table ip table-{number}\n" for number in range(500)))
        namespace.sh(f"nft -f {script}")
        assert len(namespace.run(nfnetlink.tables)) == 500

    def test_generation_grows(self, namespace: Namespace) -> None:
        first = namespace.run(nfnetlink.generation)
        namespace.sh("nft add table ip one")
        second = namespace.run(nfnetlink.generation)
        assert first == nfnetlink.UNTOUCHED
        assert second is not None and first is not None and second > first


class TestTrouble:
    def test_programs_missing(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Neither iptables-legacy-save nor python-iptables, which would do."""
        load(namespace, LEGACY[0])
        broken = tmp_path / "broken.py"
        broken.write_text("import no_such_module\n")
        monkeypatch.setattr("tracer.rules.iptables_iptc._PROGRAM", broken)
        monkeypatch.setattr("tracer.rules.live._find", lambda program: None)
        with pytest.raises(ToolMissing, match="iptables-legacy-save") as caught:
            live.read_rules(namespace.path)
        assert caught.value.hint == "apt-get install iptables"

    def test_nft_missing(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
        load(namespace, *NFTABLES)
        monkeypatch.setattr(
            "tracer.rules.live._find", lambda program: None if program == "nft" else shutil.which(program)
        )
        with pytest.raises(ToolMissing, match="nft, which prints them"):
            live.read_rules(namespace.path)

    def test_program_that_fails(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        load(namespace, LEGACY[0])
        program = tmp_path / "iptables-legacy-save"
        program.write_text("#!/bin/sh\necho 'it broke' >&2\nexit 4\n")
        program.chmod(0o755)
        monkeypatch.setattr("tracer.rules.live._find", lambda name: str(program))
        with pytest.raises(K8snetError, match=r"failed: it broke"):
            live.read_rules(namespace.path)

    def test_namespace_that_is_gone(self) -> None:
        with pytest.raises(MissingError):
            live.read_rules("/proc/1/task/0/ns/net")

    def test_table_that_vanishes_while_it_is_read(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
        load(namespace, *NFTABLES)
        monkeypatch.setattr("tracer.rules.nfnetlink.tables", lambda: [("ip", "gone"), ("ip", "kube-proxy")])
        assert [table.name for table in live.read_rules(namespace.path).tables] == ["kube-proxy"]

    def test_text_that_we_can_not_read_is_read_as_json(
        self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(namespace, *NFTABLES)
        run = live._run

        def broken(command: list[str]) -> str:
            return run(command) if "-j" in command else "an nft of another age\n"

        monkeypatch.setattr("tracer.rules.live._run", broken)
        assert documents(live.read_services(namespace.path)) == documents(services("nftables-json"))


def test_no_root_is_said_so() -> None:
    """As nobody, without capabilities."""
    code = "from tracer.rules.live import read_rules; from tracer.errors import NotRoot\n"
    code += "try: read_rules()\nexcept NotRoot as error: print('NotRoot:', error)"
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.stdout.startswith("NotRoot: "), done.stderr


@pytest.mark.slow
def test_ten_thousand_services(namespace: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "many.save"
    file.write_text(scale.iptables_save(10_000))
    namespace.sh(f"iptables-legacy-restore < {file}")
    book = live.read_services(namespace.path)
    assert len(book.services) == 10_000
    assert book.find("TCP", scale.cluster_ip(7777), 80) is not None
