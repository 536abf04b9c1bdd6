"""Checks that all kinds share: one of a few words, an IP address, labels."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from labs.cluster import names
from labs.cluster.fielderrors import (
    FieldError,
    invalid,
    required,
    unsupported,
)
from labs.cluster.resources import Object

Errors = Iterator[FieldError]
LINK_LOCAL_MULTICAST = (ipaddress.ip_network("224.0.0.0/24"), ipaddress.ip_network("ff02::/16"))


def one_of(value: Any, field: str, known: tuple[str, ...]) -> Errors:
    if not value:
        yield required(field)
    elif value not in known:
        yield unsupported(field, value, known)


def ip(text: str, field: str) -> Errors:
    if _address(text) is None:
        yield invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")


def endpoint_ip(text: str, field: str) -> Errors:
    """An address that packets may be sent on to (ValidateNonSpecialIP)."""
    address = _address(text)
    if address is None:
        yield from ip(text, field)
    elif address.is_unspecified:
        yield invalid(field, text, f"may not be unspecified ({text})")
    elif address.is_loopback:
        yield invalid(field, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    elif address.is_link_local:
        yield invalid(field, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    elif any(address.version == network.version and address in network for network in LINK_LOCAL_MULTICAST):
        yield invalid(field, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in text else ipaddress.ip_address(text)  # Go knows no zones here
    except ValueError:
        return None


def labels(found: Object | None, field: str) -> Errors:
    """What is wrong with labels."""
    for key, value in (found or {}).items():
        yield from (invalid(field, key, text) for text in names.qualified_name(key))
        yield from (invalid(field, value, text) for text in names.label_value(value or ""))
