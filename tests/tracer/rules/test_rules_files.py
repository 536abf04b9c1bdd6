"""Files of rules, told apart by what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracer.rules.test_rules_truth import FIXTURES, services
from tracer.errors import FormatError, K8snetError
from tracer.rules.files import read_files, read_text
from tracer.rules.kubeproxy import service_map


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("iptables-legacy.save", "ip6tables-legacy.save"), "iptables-legacy"),
        (("ip6tables-nft.save", "iptables-nft.save"), "iptables-nft"),
        (("nftables.nft",), "nftables-text"),
        (("nftables.json",), "nftables-json"),
    ],
)
def test_each_form(names: tuple[str, ...], form: str) -> None:
    assert service_map(read_files(FIXTURES / name for name in names)).services == services(form).services


def test_forms_may_be_mixed() -> None:
    rules = read_files([FIXTURES / "ip6tables-nft.save", FIXTURES / "nftables.nft"])
    assert len(rules.tables) == 5


@pytest.mark.parametrize("name", ["iptables-legacy.save", "nftables.nft", "nftables.json"])
def test_the_same_table_twice(name: str, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.write_bytes((FIXTURES / name).read_bytes())
    with pytest.raises(FormatError, match=r"again holds table ip .*, as .* does already"):
        read_files([FIXTURES / name, again])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r":1: holds no rules"),
        (b"\n\n  \n", r":1: holds no rules"),
        (b"# nothing but this\n", r":1: holds no rules"),
        (b"apiVersion: v1\n", r":1: holds no rules that we know: 'apiVersion: v1'"),
        (b"\x7fELF\x00\xff\xfe", r":1: holds no rules that we know"),
        (b"*nat\n:A - [0:0]\n", r":3: ends within table nat"),
        (b"table ip t {\n", r":2: ends within table ip t"),
        (b'{"nftables": [', r":1: no JSON"),
    ],
)
def test_bad_files(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=f"{file}{words}"):
        read_files([file])


@pytest.mark.parametrize("path", ["/no/such/file", "/", "a\0b"])
def test_files_that_can_not_be_read(path: str) -> None:
    with pytest.raises(K8snetError, match="can't be read: "):
        read_files([path])


def test_without_header_and_behind_warnings_of_nft() -> None:
    assert read_text("*nat\nCOMMIT\n", "x").tables[0].name == "nat"
    warned = "# Warning: table ip nat is managed by iptables-nft, do not touch!\ntable ip t {\n}\n"
    assert read_text(warned, "x").tables[0].name == "t"
