"""What routing says of an address, as far as rules and their order depend on it: is it this node's own, which device.

What belongs here: the question, and its answer where there is no kernel to ask: from addresses that somebody told. What
does not: asking the kernel (`rtnetlink`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tracer.rules.model import address_number


class Routing(Protocol):
    """Where packets go by their addresses, which are numbers of one family."""

    def kind(self, address: int) -> str | None:
        """local, unicast, broadcast, multicast, …: rtnetlink(7)'s words. None: not known, most likely unicast."""
        ...

    def device(self, address: int) -> str | None:
        """The device towards the address: "lo" for the node's own. None: not known."""
        ...

    def arrival(self, address: int) -> str | None:
        """The device by which packets from `address` come in: the one towards it. None: not known."""
        ...

    def source(self, address: int) -> int | None:
        """The node's own address from which it sends to `address`. None: not known."""
        ...


class ToldRouting:
    """What follows from the addresses that are known to be this node's own.

    family: ip or ip6. addresses: of this node; complete: there are no others. in_device, out_device: of whatever does
    not stay on this node.
    """

    def __init__(
        self,
        family: str,
        addresses: Iterable[str] = (),
        *,
        complete: bool = False,
        in_device: str | None = None,
        out_device: str | None = None,
    ) -> None:
        self._family = family
        wanted_colon = family == "ip6"
        self._addresses = tuple(address_number(text) for text in addresses if (":" in text) is wanted_colon)
        self._complete = complete
        self._in_device = in_device
        self._out_device = out_device

    def kind(self, address: int) -> str | None:
        """See Routing."""
        if address in self._addresses:
            return "local"
        special = special_kind(self._family, address)
        if special is not None:
            return special
        return "unicast" if self._complete else None

    def device(self, address: int) -> str | None:
        """See Routing."""
        return "lo" if self.kind(address) == "local" else self._out_device

    def arrival(self, address: int) -> str | None:
        """See Routing."""
        return self._in_device

    def source(self, address: int) -> int | None:
        """See Routing: to its own addresses a node sends from the same one."""
        if self.kind(address) == "local":
            return address
        return next(iter(self._addresses), None)


def special_kind(family: str, address: int) -> str | None:
    """The kind of an address that means the same everywhere (Linux net/ipv4/fib_frontend.c, __inet_dev_addr_type)."""
    if family == "ip6":
        return "local" if address == 1 else "multicast" if address >> 120 == 0xFF else None
    first = address >> 24
    if first == 127:
        return "local"
    if first == 0 or address == 0xFFFFFFFF:
        return "broadcast"
    return "multicast" if 224 <= first < 240 else None
