"""The rules of the live kernel, in any network namespace: legacy tables, iptables-nft's and nftables' together.

What belongs here: which tables there are, and which program prints each. What does not: reading what they print
(`iptables_save`, `nft_text`, `nft_json`), and whether anything changed since (`changes`).

Nothing is changed by looking. The kernel creates a legacy table as soon as somebody asks for it by name, which
adds hooks to the path of every packet, so that only tables which /proc/net/ip_tables_names lists are read; and a module
that is not loaded is left so: ipsets are read only where some rule looks in one. The programs run one after another, so
a change in between may be seen by one and not by the next.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tracer import netns
from tracer.errors import FormatError, K8snetError, NotRoot, ToolMissing
from tracer.rules import ipset_netlink, iptables_iptc, nfnetlink, sockets_live
from tracer.rules.ipset_save import read_ipsets
from tracer.rules.iptables_save import read_save
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import Origin, RuleSet
from tracer.rules.nft_json import read_nft_json
from tracer.rules.nft_text import read_nft_text
from tracer.rules.services import ServiceMap

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS = 120.0  # a table of 10,000 Services takes iptables-nft-save 1.2 s; a stuck program must not stop a trace
_IPTABLES_TABLES = frozenset(("raw", "mangle", "nat", "filter", "security"))
_INCOMPATIBLE = re.compile(r"Table `(\w+)' (?:is|contains) incompatible")
_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
_NAMES_FILES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
_MATCHES_FILES = {"ip": "ip_tables_matches", "ip6": "ip6_tables_matches"}


def read_rules(netns_path: str | None = None) -> RuleSet:
    """All packet-filter rules of the network namespace at `netns_path` (None: the caller's own), and the eBPF datapath
    of the node whose it is.

    What a missing program keeps from us is in the notes of the result. Raises NotRoot, ToolMissing when there are rules
    and no program at all to read them, FormatError, and what `tracer.netns.run_in` raises.
    """
    rules = netns.run_in(netns_path, _read_here)
    rules.sockets = sockets_live.of_node(netns_path)
    return rules


def read_chains(family: str, table: str, chains: Iterable[str], netns_path: str | None = None) -> dict[str, str | None]:
    """What `iptables-nft -S CHAIN` prints for each of these chains of one of its tables; None for one that is gone.

    family: ip or ip6. Raises as read_rules does.
    """
    program = f"{_PROGRAMS[family]}-nft"

    def read(chain: str) -> str | None:
        try:
            return _run([program, "-t", table, "-S", chain])
        except _Vanished:
            return None

    return netns.run_in(netns_path, lambda: {chain: read(chain) for chain in chains})


def read_services(netns_path: str | None = None) -> ServiceMap:
    """The Service map that these rules hold. Raises as read_rules does."""
    return service_map(read_rules(netns_path))


def legacy_tables(family: str) -> list[str]:
    """The legacy tables that exist in the calling thread's namespace; family: ip or ip6. Raises NotRoot."""
    try:
        return Path("/proc/thread-self/net", _NAMES_FILES[family]).read_text().split()
    except FileNotFoundError:
        return []  # ip_tables is not there
    except PermissionError:
        raise NotRoot("reading packet-filter rules needs root", hint="run it with sudo") from None


def _read_here() -> RuleSet:
    rules = RuleSet()
    texts: list[str] = []
    try:
        for family in ("ip", "ip6"):
            if legacy_tables(family):
                rules.add(_legacy(family, texts))
        rules.add(_nf_tables(texts))
        if any(" --match-set " in text for text in texts):
            rules.add(_ipsets())
    except PermissionError:
        raise NotRoot("reading packet-filter rules needs root", hint="run it with sudo") from None
    return rules


def _legacy(family: str, texts: list[str]) -> RuleSet:
    """The legacy tables of one family: as the program prints them, or else by python-iptables, chain by chain.

    texts: what is printed is added here.
    """
    program = _PROGRAMS[family]
    for name in (f"{program}-legacy-save", f"{program}-save"):
        if _find(name) is None:
            continue
        text = _run([name])
        rules = read_save(text, name, family)
        if all(table.origin is not Origin.IPTABLES_NFT for table in rules.tables):
            texts.append(text)
            return rules
    try:
        if _may_look_in_ipsets(family):
            texts.append(" --match-set ")
        return RuleSet([iptables_iptc.read_table(family, table) for table in legacy_tables(family)])
    except ToolMissing:
        raise ToolMissing(
            f"there are legacy {program} rules, and {program}-legacy-save, which prints them, is not installed",
            hint="apt-get install iptables",
        ) from None


def _may_look_in_ipsets(family: str) -> bool:
    """Whether the match is there that does: what is read chain by chain is not searched for it."""
    try:
        return "set" in Path("/proc/thread-self/net", _MATCHES_FILES[family]).read_text().split()
    except FileNotFoundError:
        return False


def _ipsets() -> RuleSet:
    """All ipsets: as ipset prints them, or else by netlink."""
    why = "ipset is not installed"
    if _find("ipset") is not None:
        try:
            return read_ipsets(_run(["ipset", "save"]), "ipset save")
        except K8snetError as error:  # it may be older than the kernel
            why = error.message
    try:
        return read_ipsets(ipset_netlink.save(), "ipsets by netlink")
    except (OSError, FormatError) as error:
        note = f"the ipsets that rules look in can't be read: {why}, and netlink told nothing ({error})"
        return RuleSet(notes=[f"{note}: apt-get install ipset"])


def _nf_tables(texts: list[str]) -> RuleSet:
    """The tables of nf_tables: iptables-nft's own as it prints them, all others as nft does.

    texts: what iptables-nft prints is added here.
    """
    tables = nfnetlink.tables()
    rules = RuleSet()
    for family, program in _PROGRAMS.items():
        if any(of == family and name in _IPTABLES_TABLES for of, name in tables) and _find(f"{program}-nft-save"):
            texts.append(_run([f"{program}-nft-save"]))
            rules.add(_compatible(read_save(texts[-1], f"{program}-nft-save", family)))
    known = {(table.family, table.name) for table in rules.tables}
    others = [table for table in tables if table not in known]
    if others:
        rules.add(_nft(others))
    made = {key: number for number, key in enumerate(tables)}  # in that order: see `hooks`
    rules.tables.sort(key=lambda table: made.get((table.family, table.name), len(made)))
    return rules


def _compatible(rules: RuleSet) -> RuleSet:
    """The tables that are iptables-nft's own; of others it says so in a note, and prints them without their rules.

    Those that merely bear such a name (`nft add table ip nat`) are left to nft.
    """
    foreign = {match[1] for note in rules.notes if (match := _INCOMPATIBLE.search(note)) is not None}
    return RuleSet([table for table in rules.tables if table.name not in foreign])


def _nft(tables: Iterable[tuple[str, str]]) -> RuleSet:
    if _find("nft") is None:
        raise ToolMissing(
            "there are nftables rules, and nft, which prints them, is not installed", hint="apt-get install nftables"
        )
    rules = RuleSet()
    for family, name in tables:
        try:
            rules.add(read_nft_text(_run(["nft", "list", "table", family, name]), f"nft list table {family} {name}"))
        except _Vanished:
            continue
        except FormatError:  # a form of text that we do not know: JSON changes less
            text = _run(["nft", "-j", "list", "table", family, name])
            rules.add(read_nft_json(text, f"nft -j list table {family} {name}"))
    return rules


class _Vanished(K8snetError):
    """The table or chain that was to be printed is gone."""


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":" + PATH)


def _run(command: list[str]) -> str:
    """What a program prints. It runs in the calling thread's namespace."""
    program = _find(command[0])
    if program is None:
        raise ToolMissing(f"{command[0]} is not installed")
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, timeout=_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise K8snetError(f"{' '.join(command)} did not end within {_SECONDS:.0f} s") from None
    except OSError as error:
        raise K8snetError(f"{' '.join(command)} can't be run: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout.decode(errors="replace")
    words = done.stderr.decode(errors="replace").strip()
    if "No such file or directory" in words or "No chain/target/match by that name" in words:
        raise _Vanished(f"{' '.join(command)}: {words}")
    if "ermi" in words and os.geteuid() != 0:  # "Permission denied", "Operation not permitted"
        raise NotRoot("reading packet-filter rules needs root", hint="run it with sudo")
    raise K8snetError(f"{' '.join(command)} failed: {words or f'exit code {done.returncode}'}")
