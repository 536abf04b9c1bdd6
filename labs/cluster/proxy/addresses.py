"""IP addresses and networks as Go's `net` package prints them, kept to one family.

kube-proxy parses every address (`netutils.ParseIPSloppy`), sorts it into IPv4 or IPv6, and prints it again; chain names
are hashes of the printed form, so it must be the same here. What can't be parsed is left out, as kube-proxy does it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

_LEADING_ZEROS = re.compile(r"(?<![0-9a-fA-F:])0+(?=\d)")


@lru_cache(maxsize=65536)
def canonical(text: str, family: int) -> str | None:
    """Give `text` as Go's `net.IP.String()` prints it, or None when it is not an address of `family` (4 or 6).

    As `netutils.ParseIPSloppy` has it, an IPv4-mapped IPv6 address counts as IPv4, and octets may have leading zeros.
    """
    address = _parse(text)
    if address is None or address[0] != family:
        return None
    return address[1]


def canonical_network(text: str, family: int) -> str | None:
    """Give the CIDR `text` with its host bits cleared, or None when it is no network of `family` (ParseCIDRSloppy)."""
    address, _, bits = text.strip().partition("/")
    host = canonical(address, family)
    if host is None or not bits.isdecimal() or int(bits) > (32 if family == 4 else 128):
        return None
    return str(ipaddress.ip_network(f"{host}/{int(bits)}", strict=False))


def of_family(texts: Iterable[str], family: int) -> tuple[str, ...]:
    """Give the addresses of `family` among `texts`, in their order (proxyutil.MapIPsByIPFamily)."""
    return tuple(ip for text in texts if (ip := canonical(text, family)) is not None)


def networks_of_family(texts: Iterable[str], family: int) -> tuple[str, ...]:
    """Give the networks of `family` among `texts`, in their order (proxyutil.MapCIDRsByIPFamily)."""
    return tuple(cidr for text in texts if (cidr := canonical_network(text, family)) is not None)


def contains(network: str, ip: str) -> bool:
    """Tell whether `ip` lies in `network`, both canonical and of one family."""
    return ipaddress.ip_address(ip) in ipaddress.ip_network(network)


def join_host_port(ip: str, port: int) -> str:
    """Give "ip:port", with brackets around an IPv6 address (net.JoinHostPort)."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _parse(text: str) -> tuple[int, str] | None:
    try:
        socket.inet_pton(socket.AF_INET, text)  # strict: four decimal octets without leading zeros, so it is canonical
        return 4, text
    except (OSError, ValueError, TypeError):
        pass
    try:
        address = ipaddress.ip_address(_LEADING_ZEROS.sub("", text))
    except (ValueError, TypeError):
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return 4, str(address)
    if address.scope_id is not None:
        return None
    if address.ipv4_mapped is not None:
        return 4, str(address.ipv4_mapped)
    return 6, str(address)
