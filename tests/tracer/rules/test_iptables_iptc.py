"""python-iptables says of each chain what iptables-save does, and changes nothing by looking."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tracer.networks import Namespace, namespaces
from tests.tracer.rules.rule_texts import TARGETS, rules
from tests.tracer.rules.test_refreshing import whole
from tests.tracer.rules.test_rules_truth import FIXTURES, services
from tracer.errors import K8snetError
from tracer.rules import iptables_iptc, live
from tracer.rules.iptables_iptc import Asking, read_table
from tracer.rules.iptables_save import read_save
from tracer.rules.model import LazyChains, Table

pytestmark = pytest.mark.root

OTHERS = """\
*filter
:MINE - [0:0]
-A FORWARD -s 10.0.0.0/255.0.0.255 ! -d 192.0.2.0/24 -i eth+ ! -o lo -p 132 -j DROP
-A FORWARD ! -p icmp -f -m comment --comment "a \\"quoted\\" word" -g MINE
-A MINE -m state --state NEW -m limit --limit 5/min -j LOG --log-prefix "x y"
-A MINE -p tcp -m multiport --dports 80,443:445 -m tcp ! --tcp-flags SYN,ACK SYN -j REJECT --reject-with tcp-reset
-A MINE -p 253
-A INPUT -m addrtype --dst-type LOCAL -m statistic --mode nth --every 3 --packet 1 -j RETURN
COMMIT
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


@pytest.fixture(scope="module")
def shared_namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


def load(namespace: Namespace, text: str, program: str = "iptables-legacy-restore") -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".save") as file:
        file.write(text)
        file.flush()
        namespace.sh(f"{program} < {file.name}")


def assert_same(namespace: Namespace, family: str) -> int:
    """Hold all tables of a family against what the program prints of them, chain by chain; returns how many chains."""
    program = "ip6tables" if family == "ip6" else "iptables"
    saved = read_save(namespace.sh(f"{program}-legacy-save"), program, family)
    count = 0
    for table in saved.tables:
        read = namespace.run(lambda name=table.name: read_table(family, name))  # type: ignore[misc]
        assert list(read.chains) == list(table.chains)
        for name, chain in table.chains.items():
            assert [rule.text for rule in read.chains[name].rules] == [rule.text for rule in chain.rules]
            assert read.chains[name] == chain
            count += 1
        assert (read.family, read.name, read.origin) == (table.family, table.name, table.origin)
        assert list(read.base_chains()) == list(table.base_chains())
    return count


@pytest.mark.parametrize(("family", "program"), [("ip", "iptables"), ("ip6", "ip6tables")])
def test_kube_proxys_chains(namespace: Namespace, family: str, program: str) -> None:
    text = (FIXTURES / f"{program}-legacy.save").read_text()
    load(namespace, text, f"{program}-legacy-restore")
    assert assert_same(namespace, family) == sum(line.startswith(":") for line in text.split("\n")) > 60


def test_other_forms(namespace: Namespace) -> None:
    load(namespace, OTHERS)
    load(
        namespace, "*filter\n-A INPUT -s fd00::/64 ! -i lo -p ipv6-icmp -j ACCEPT\nCOMMIT\n", "ip6tables-legacy-restore"
    )
    assert (assert_same(namespace, "ip"), assert_same(namespace, "ip6")) == (4, 3)


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), table=st.sampled_from(sorted(TARGETS)))
def test_random_rules(shared_namespace: Namespace, data: st.DataObject, table: str) -> None:
    drawn = data.draw(st.lists(rules(table), min_size=1, max_size=12))
    lines = [f"*{table}", ":A - [0:0]", ":B - [0:0]", *(f"-A A {rule}" for rule, _, _ in drawn), "COMMIT", ""]
    load(shared_namespace, "\n".join(lines))
    assert_same(shared_namespace, "ip")


def test_only_chains_that_are_asked_for_are_read(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    load(namespace, (FIXTURES / "iptables-legacy.save").read_text())
    asked: list[str] = []
    rules_of = Asking.rules
    monkeypatch.setattr(Asking, "rules", lambda self, chain: asked.append(chain) or rules_of(self, chain))
    table: Table = namespace.run(lambda: read_table("ip", "nat"))
    assert isinstance(table.chains, LazyChains)
    assert len(table.chains["KUBE-POSTROUTING"].rules) == 3
    assert table.chains["KUBE-POSTROUTING"].rules[0].text.startswith("-A KUBE-POSTROUTING -m mark ! --mark 0x4000")
    assert asked == ["KUBE-POSTROUTING"]


def test_looking_changes_nothing(namespace: Namespace) -> None:
    """No further table is created, and no module is loaded."""
    load(namespace, "*nat\n:MINE - [0:0]\nCOMMIT\n")
    names = [f"/proc/thread-self/net/{family}_tables_names" for family in ("ip", "ip6")]

    def everything() -> list[str]:
        modules = Path("/proc/modules")
        tables = namespace.run(lambda: [Path(name).read_text() for name in names if Path(name).exists()])
        return [*tables, modules.read_text() if modules.exists() else ""]

    before = everything()
    table = namespace.run(lambda: read_table("ip", "nat"))
    assert [rule.text for chain in table.chains.values() for rule in chain.rules] == []
    assert everything() == before


class TestWithoutTheProgram:
    @pytest.fixture(autouse=True)
    def no_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tracer.rules.live._find", lambda name: None if "save" in name else shutil.which(name))

    def test_the_service_map_is_the_same(self, namespace: Namespace) -> None:
        load(namespace, (FIXTURES / "iptables-legacy.save").read_text())
        load(namespace, (FIXTURES / "ip6tables-legacy.save").read_text(), "ip6tables-legacy-restore")
        assert whole(live.read_services(namespace.path)) == whole(services("iptables-legacy"))


class TestTrouble:
    def program(self, monkeypatch: pytest.MonkeyPatch, path: Path, code: str) -> None:
        path.write_text(code)
        monkeypatch.setattr(iptables_iptc, "_PROGRAM", path)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("raise RuntimeError('it broke')", "failed: RuntimeError: it broke"),
            ("pass", "failed: it ended"),
            ("import os; os.write(1, b'9\\nabc')", "failed: it ended"),
            ("import time; time.sleep(60)", "did not answer within"),
        ],
    )
    def test_a_process_that_fails(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str
    ) -> None:
        self.program(monkeypatch, tmp_path / "x.py", code)
        monkeypatch.setattr(iptables_iptc, "_SECONDS", 2.0 if "sleep" in code else 30.0)
        with pytest.raises(K8snetError, match=message):
            read_table("ip", "nat")

    def test_it_ends_with_the_table(self, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
        load(namespace, OTHERS)
        processes: list[subprocess.Popen[bytes]] = []
        end = iptables_iptc._end
        monkeypatch.setattr(
            iptables_iptc, "_end", lambda process, file: processes.append(process) or end(process, file)
        )
        table: Table | None = namespace.run(lambda: read_table("ip", "filter"))
        assert processes == []
        del table
        assert [process.returncode for process in processes] == [-signal.SIGKILL]
