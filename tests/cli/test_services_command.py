"""k8snet-trace services: the Service map by the front door, of saved rules and of the kernel's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import POWERLESS, TRACE, Terminal, environment, run
from tests.tracer.networks import namespaces
from tests.tracer.rules.test_rules_truth import FIXTURES, services
from tracer.escape import cells

LEGACY = ("--rules", str(FIXTURES / "iptables-legacy.save"), "--rules", str(FIXTURES / "ip6tables-legacy.save"))
NFT = ("--rules", str(FIXTURES / "iptables-nft.save"), "--rules", str(FIXTURES / "ip6tables-nft.save"))
FORMS = {
    "iptables-legacy": LEGACY,
    "iptables-nft": NFT,
    "nftables-text": ("--rules", str(FIXTURES / "nftables.nft")),
    "nftables-json": ("--rules", str(FIXTURES / "nftables.json")),
}
TABLE = """\
SERVICE            ADDRESSES                                  ENDPOINTS                 SHARE
default/web-21:p0  ClusterIP 10.96.192.4:443 rejected         no endpoints
                   NodePort :30084 rejected
default/web-21:p0  ClusterIP [fd00:10:96::8b98]:443 rejected  no endpoints
                   NodePort :30084 rejected
shop/search-12     ClusterIP 10.96.43.175:5432                10.244.2.117:8080         1/1
                   LoadBalancer 198.51.100.82:5432            on this node only:
                     from 10.0.0.0/8                          10.244.3.18:8080          1/1
                   NodePort :30048
shop/search-12     ClusterIP [fd00:10:96::3dce]:5432          [fd00:10:244::4006]:8080  1/2
                   NodePort :30048                            [fd00:10:244::99fa]:8080  1/2
                                                              on this node only:
                                                              [fd00:10:244::99fa]:8080  1/1
shop/ship-29:p0    ClusterIP 10.96.218.149:9090/udp           10.244.1.12:8000          1/1
                                                              affinity 1m
"""
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def documents(*arguments: str) -> list[dict[str, Any]]:
    done = run("services", "-o", "json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_json_is_the_map_and_needs_no_root(form: str) -> None:
    done = run("services", *FORMS[form], "-o", "json", prefix=POWERLESS)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == services(form).to_json()


def test_json_is_what_the_contract_promises() -> None:
    promised = {"namespace", "name", "port_name", "protocol", "addresses", "session_affinity_seconds", "endpoints"}
    found = documents(*LEGACY)
    assert len(found) == count_of_ports(lambda namespace, name: True) == 73
    for document in found:
        assert document.keys() >= promised | {"local_endpoints", "no_endpoints"}
        assert {frozenset(each) for each in document["addresses"]} == {frozenset(("kind", "ip", "port", "refused"))}
        for choice in (document["endpoints"], document["local_endpoints"]):
            assert sum(each["probability"] for each in choice) == pytest.approx(1.0 if choice else 0.0, abs=1e-8)


def count_of_ports(wanted: Callable[[str, str], bool]) -> int:
    """Service ports of either family, by the objects that the rules were made from."""
    services = json.loads((FIXTURES / "objects.json").read_text())["services"]
    return sum(
        len(service["spec"]["ports"]) * len(service["spec"]["clusterIPs"])
        for service in services
        if wanted(service["metadata"]["namespace"], service["metadata"]["name"])
    )


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["fastapi/cart-0"], lambda namespace, name: (namespace, name) == ("fastapi", "cart-0")),
        (["cart-0"], lambda namespace, name: name == "cart-0"),
        (["shop/*", "cart-*"], lambda namespace, name: namespace == "shop" or name.startswith("cart-")),
        (["shop/c*", "c*35"], lambda namespace, name: (namespace, name) == ("shop", "cart-35")),
    ],
)
def test_names_choose(names: list[str], wanted: Callable[[str, str], bool]) -> None:
    found = documents(*names, *LEGACY)
    assert found == [each for each in documents(*LEGACY) if wanted(each["namespace"], each["name"])]
    assert len(found) == count_of_ports(wanted) > 0


def test_unknown_name_is_an_error_with_the_nearest() -> None:
    done = run("services", "fastapi/card-0", *LEGACY)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error == "error: the rules have no Service fastapi/card-0"
    assert hint.startswith("hint: the nearest: fastapi/cart-0")


def test_table_says_what_the_map_holds() -> None:
    done = run("services", "shop/ship-29", "default/web-21", "shop/search-12", *LEGACY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == TABLE


@pytest.mark.parametrize("columns", [80, 120])
def test_table_on_a_terminal(columns: int) -> None:
    with Terminal("services", *LEGACY, columns=columns) as terminal:
        lines = terminal.finish()
    assert terminal.process.returncode == 0
    plain = [_ESCAPE.sub("", line) for line in lines]
    assert max(map(cells, plain)) <= columns
    assert re.search(r"\x1b\[1;31mno endpoints\x1b\[0m", "\n".join(lines))
    assert re.search(r"\x1b\[1;34mfastapi/cart-0:p0\x1b\[0m", "\n".join(lines))
    # piped, the same text without colour
    assert plain == run("services", *LEGACY, env=environment(COLUMNS=str(columns))).stdout.splitlines()


def test_no_colour() -> None:
    with Terminal("services", *LEGACY, env=environment(NO_COLOR="1")) as terminal:
        terminal.finish()
    assert b"\x1b" not in terminal.screen


def test_rules_without_services(tmp_path: Path) -> None:
    file = tmp_path / "empty.save"
    file.write_text("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")
    done = run("services", "--rules", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "note: kube-proxy has no rules for any Service here\n"
    assert documents("--rules", str(file)) == []


def test_notes_of_the_reader_go_to_standard_error(tmp_path: Path) -> None:
    file = tmp_path / "mixed.save"
    rules = (FIXTURES / "iptables-nft.save").read_text()
    file.write_text(f"# Table `filter' is incompatible, use 'nft' tool.\n{rules}")
    done = run("services", "--rules", str(file), "-o", "json")
    assert done.returncode == 0
    assert done.stderr == f"note: {file}:1: Table `filter' is incompatible, use 'nft' tool.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rules", "/no/such/file"], 1, "/no/such/file can't be read: No such file or directory"),
        (["--rules", "/"], 2, "--rules"),
        ([*LEGACY, "--netns", "1"], 2, "--rules reads files, so there is no namespace to choose"),
        (["--netns", "no-such-namespace"], 2, "there is no network namespace 'no-such-namespace'"),
        ([*LEGACY[:2], *LEGACY[:2]], 1, "holds table ip filter, as "),
        (["-o", "yaml"], 2, "--output"),
    ],
)
def test_errors(arguments: list[str], code: int, message: str) -> None:
    done = run("services", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "cut.save"
    file.write_bytes((FIXTURES / "iptables-legacy.save").read_bytes()[:30_000])
    done = run("services", "--rules", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    error, *_ = done.stderr.splitlines()
    assert re.fullmatch(rf"error: {file}:\d+: ends within table nat, without its COMMIT: is the file cut off\?", error)


@pytest.mark.root
def test_the_kernels_rules_in_another_namespace() -> None:
    with namespaces(1) as (namespace,):
        namespace.sh(f"iptables-legacy-restore < {FIXTURES / 'iptables-legacy.save'}")
        namespace.sh(f"ip6tables-legacy-restore < {FIXTURES / 'ip6tables-legacy.save'}")
        assert documents("--netns", namespace.path) == services("iptables-legacy").to_json()


@pytest.mark.root
def test_a_namespace_without_rules() -> None:
    with namespaces(1) as (namespace,):
        assert documents("--netns", namespace.path) == []


@pytest.mark.root
def test_without_privileges_it_says_so() -> None:
    done = run("services", prefix=("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: reading packet-filter rules needs root\nhint: run it with sudo\n"


def test_reader_that_ends_early() -> None:
    done = run("-c", f"{' '.join([*TRACE, 'services', *LEGACY])} | head -1", program=("sh",))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["SERVICE", "ADDRESSES", "ENDPOINTS", "SHARE"]


def without(*programs: str) -> tuple[str, ...]:
    """Runs a command where these programs are not installed: in mounts of its own, nothing executable is there."""
    hide = " && ".join(f"mount --bind /dev/null {Path('/usr/sbin', program).resolve()}" for program in programs)
    return ("unshare", "--mount", "--", "sh", "-c", f'{hide} && exec "$0" "$@"')


@pytest.mark.root
def test_without_iptables_python_iptables_will_do() -> None:
    with namespaces(1) as (namespace,):
        namespace.sh(f"iptables-legacy-restore < {FIXTURES / 'iptables-legacy.save'}")
        done = run(
            "services",
            "--netns",
            namespace.path,
            "-o",
            "json",
            prefix=without("iptables-legacy-save", "iptables-nft-save"),
        )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = [each for each in services("iptables-legacy").to_json() if each["family"] == 4]
    assert json.loads(done.stdout) == wanted


@pytest.mark.root
def test_without_nft_it_says_what_to_install() -> None:
    with namespaces(1) as (namespace,):
        namespace.sh(f"nft -f {FIXTURES / 'nftables.nft'}")
        done = run("services", "--netns", namespace.path, prefix=without("nft"))
    assert (done.returncode, done.stdout) == (3, "")
    error, hint = done.stderr.splitlines()
    assert error == "error: there are nftables rules, and nft, which prints them, is not installed"
    assert hint == "hint: apt-get install nftables"
