"""A program of its own: prints chains of a legacy table as iptables-save would, one by one as they are asked for.

    python iptc_lines.py FAMILY TABLE      FAMILY: ip or ip6

What belongs here: python-iptables (iptc), and all that is odd about it. What does not: what the lines say, and who asks
(`iptables_iptc`). It imports nothing of ours.

First it prints the declarations of all chains, then for each line of standard input, the name of a chain, its rules;
each answer behind its length in bytes on a line. All are about the state at the start: libiptc takes a snapshot.

It is a process of its own because iptc is no good neighbour: importing it runs modprobe and the linker, and what an
extension says of its options comes out of C's standard output, which has to be turned elsewhere for that. (iptc does so
for each match of each rule, by a pipe, which makes its own dump of a table so slow.)
Source of the forms: iptables/iptables.c, print_rule4, and iptables/ip6tables.c, print_rule6.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Any

_GOTO = {"ip": 0x02, "ip6": 0x04}  # IPT_F_GOTO, IP6T_F_GOTO
_FRAGMENT = 0x01  # IPT_F_FRAG; of ip6, the same bit says that there is a protocol
_VIA_IN, _VIA_OUT, _NOT_SOURCE, _NOT_DESTINATION, _NOT_FRAGMENT, _NOT_PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
# as /etc/protocols has them, which may be missing
_PROTOCOLS = {6: "tcp", 17: "udp", 136: "udplite", 1: "icmp", 58: "ipv6-icmp", 50: "esp", 51: "ah", 132: "sctp"}


class Printer:
    """Prints chains of one table into a file that stands in for C's standard output."""

    def __init__(self, family: str, table: str) -> None:
        iptc = _import()
        self._family = family
        self._libc = ctypes.CDLL(None)
        kind = iptc.Table6 if family == "ip6" else iptc.Table
        self._table = kind(table, autocommit=False)
        self._chain = iptc.Chain
        self._file = os.memfd_create("iptc")
        os.dup2(self._file, 1)

    def declarations(self) -> bytes:
        """All chains, as in the head of a saved table."""
        lines = []
        for chain in self._table.chains:
            told = "- [0:0]"
            if chain.is_builtin():
                policy, (packets, octets) = self._table.get_policy(chain.name)
                told = f"{policy.name} [{packets}:{octets}]"
            lines.append(f":{chain.name} {told}\n")
        return "".join(lines).encode()

    def rules(self, name: str) -> bytes:
        """The rules of a chain."""
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)
        chain = self._chain(self._table, name)
        entry = self._table.first_rule(name)
        while entry:
            self._print(name, self._table.create_rule(entry, chain))
            entry = self._table.next_rule(entry)
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def _print(self, chain: str, rule: Any) -> None:
        ip = rule.get_ip()
        os.write(1, f"-A {chain}{self._own_options(ip)}".encode())
        for match in rule.matches:
            os.write(1, f" -m {match._get_alias_name() or match.name}".encode())
            self._save(match, ip)
        target = rule.target
        name = target._get_alias_name() or target.name if not target._is_standard_target() else target.standard_target
        if name:
            os.write(1, f" -{'g' if ip.flags & _GOTO[self._family] else 'j'} {name}".encode())
            self._save(target, ip)
        os.write(1, b"\n")

    def _save(self, extension: Any, ip: Any) -> None:
        if extension._module and extension._module.save:
            extension._xt.save(extension._module, ip, extension._ptr)
            self._libc.fflush(None)
            end = os.lseek(self._file, -1, os.SEEK_CUR)
            if os.pread(self._file, 1, end) != b"\n":  # which iptc's wrapper appends
                os.lseek(self._file, 0, os.SEEK_END)

    def _own_options(self, ip: Any) -> str:
        inverted = ip.invflags
        words = [
            _address("-s", bytes(ip.src), bytes(ip.smsk), inverted & _NOT_SOURCE),
            _address("-d", bytes(ip.dst), bytes(ip.dmsk), inverted & _NOT_DESTINATION),
            _interface("-i", ip.iniface, ip.iniface_mask, inverted & _VIA_IN),
            _interface("-o", ip.outiface, ip.outiface_mask, inverted & _VIA_OUT),
        ]
        if ip.proto:
            words.append(f"{' !' if inverted & _NOT_PROTOCOL else ''} -p {_protocol(ip.proto)}")
        if self._family == "ip" and ip.flags & _FRAGMENT:
            words.append(f"{' !' if inverted & _NOT_FRAGMENT else ''} -f")
        return "".join(words)


def _address(option: str, address: bytes, mask: bytes, inverted: int) -> str:
    if not any(address) and not any(mask) and not inverted:
        return ""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    bits = "".join(f"{byte:08b}" for byte in mask)
    ones = bits.rstrip("0")
    length = str(len(ones)) if "0" not in ones else socket.inet_ntop(family, mask)
    return f"{' !' if inverted else ''} {option} {socket.inet_ntop(family, address)}/{length}"


def _interface(option: str, name: bytes, mask: bytes, inverted: int) -> str:
    if not mask:
        return ""
    whole = len(mask) > len(name)  # it covers the zero at the end of the name
    shown = name[: len(mask)].decode(errors="replace")
    return f"{' !' if inverted else ''} {option} {shown}{'' if whole else '+'}"


def _protocol(number: int) -> str:
    known = _PROTOCOLS.get(number)
    if known is not None:
        return known
    with contextlib.suppress(OSError):
        for line in Path("/etc/protocols").read_text(errors="replace").split("\n"):
            words = line.split("#")[0].split()
            if words[1:2] == [str(number)]:
                return words[0]
    return str(number)


def _import() -> Any:
    """iptc without its attempt to load kernel modules: nothing is changed by looking."""
    found = importlib.util.find_spec("iptc")
    if found is None or found.origin is None:
        raise ImportError("python-iptables is not installed")
    spec = importlib.util.spec_from_file_location("iptc.util", Path(found.origin).with_name("util.py"))
    assert spec is not None and spec.loader is not None
    util = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(util)
    util.load_kernel = lambda name, exc_if_failed=False: None  # type: ignore[attr-defined]
    sys.modules["iptc.util"] = util
    import iptc

    return iptc


def main() -> None:
    """Answer until standard input ends."""
    answers = os.dup(1)
    printer = Printer(*sys.argv[1:3])
    answer = printer.declarations()
    while True:
        data = b"%d\n%s" % (len(answer), answer)
        while data:
            data = data[os.write(answers, data) :]
        line = sys.stdin.readline()
        if not line:
            return
        answer = printer.rules(line.rstrip("\n"))


if __name__ == "__main__":
    main()
