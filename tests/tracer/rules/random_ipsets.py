"""Random sets of ipset(8), and rules that look in them, about a few addresses, ports and devices.

What belongs here: commands for ipset and iptables. What does not: packets, and what is expected.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

SOURCES = {4: ("10.0.1.7", "10.0.1.8", "10.0.1.130"), 6: ("fd00:1::7", "fd00:1::8", "fd00:1::1:7")}
DESTINATIONS = {4: ("10.0.2.5", "10.0.2.6", "10.0.1.1"), 6: ("fd00:2::5", "fd00:2::6", "fd00:1::1")}
PORTS = (53, 80, 443)
PROTOCOLS = ("TCP", "UDP", "SCTP")
_LENGTHS = {4: (8, 23, 24, 25, 28, 31, 32), 6: (16, 47, 64, 100, 112, 124, 128)}
# A set has only one kind: of two elements for one network and device, nobody can tell which the kernel finds first
_DEVICES = (("client", "server", "lo"), ("cli wildcard", "s wildcard", "lo"))
_PARTS = {
    "hash:ip": ("ip",),
    "hash:net": ("net",),
    "hash:ip,port": ("ip", "port"),
    "hash:ip,port,ip": ("ip", "port", "ip"),
    "hash:ip,port,net": ("ip", "port", "net"),
    "hash:net,port": ("net", "port"),
    "hash:net,iface": ("net", "iface"),
}
KINDS = (*_PARTS, "bitmap:ip", "bitmap:port", "list:set")


class RandomSets:
    """Sets of each type, and rules for each."""

    def __init__(self, seed: int, family: int) -> None:
        self._random = random.Random(seed)
        self._family = family
        self._devices = _DEVICES[0]
        self.commands: list[str] = []  # for `ipset restore -exist`
        self.rules: list[str] = []  # the words between `-A CHAIN` and `-j`
        for kind in _PARTS:
            for number in (1, 2):
                self._make(f"{re.sub('[:,]', '-', kind)}-{number}", kind)
        self._make_bitmaps()
        for number in (1, 2):
            members = self._random.sample([line.split()[1] for line in self.commands if "create" in line], 2)
            self._add(f"list-{number}", "list:set", "", members, 2)

    def _make(self, name: str, kind: str) -> None:
        family = "inet6" if self._family == 6 else "inet"
        extra = "netmask 25 timeout 600" if name == "hash-ip-2" and self._family == 4 else "comment"
        self._devices = self._random.choice(_DEVICES)
        elements = [self._element(_PARTS[kind]) for _ in range(self._random.randrange(1, 7))]
        self._add(name, kind, f"family {family} {extra}", elements, len(_PARTS[kind]))

    def _make_bitmaps(self) -> None:
        addresses = [self._random.choice(SOURCES[4] + DESTINATIONS[4]) for _ in range(3)]
        if self._family == 4:
            self._add("bitmap-ip-1", "bitmap:ip", "range 10.0.0.0/16", addresses, 1)
            self._add("bitmap-ip-2", "bitmap:ip", "range 10.0.0.0/16 netmask 24", addresses[:1], 1)
        self._add("bitmap-port-1", "bitmap:port", "range 0-1023", ["53", "400-500"], 1)

    def _add(self, name: str, kind: str, options: str, elements: list[str], dimensions: int) -> None:
        self.commands += (f"create {name} {kind} {options}", *(f"add {name} {element}" for element in elements))
        for count in (dimensions, dimensions, dimensions + 1, max(1, dimensions - 1)):
            directions = ",".join(self._random.choice(("src", "dst")) for _ in range(count))
            self.rules.append(f"-m set {self._random.choice(('', '! '))}--match-set {name} {directions}")

    def _element(self, parts: tuple[str, ...]) -> str:
        told = list(self._words(parts))
        element, *more = ",".join(told).split(" ")
        if "net" in parts and self._random.random() < 0.3:
            more.append("nomatch")
        return " ".join([element, *more])

    def _words(self, parts: tuple[str, ...]) -> Iterator[str]:
        for part in parts:
            address = self._random.choice(SOURCES[self._family] + DESTINATIONS[self._family])
            if part == "port":
                yield f"{self._random.choice(PROTOCOLS).lower()}:{self._random.choice(PORTS)}"
            elif part == "iface":
                yield self._random.choice(self._devices)
            else:
                length = self._random.choice(_LENGTHS[self._family])
                yield address if part == "ip" else f"{address}/{length}"
