"""The maps of the eBPF datapath on a node, entry by entry, as bpftool shows and changes them.

What belongs here: finding a Service in them, and its slots. What does not: what the entries mean to the programs
(`tracer.service_lb`), and judging (`labs.engine.checks`).
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from labs.engine.world import World
from tracer.errors import K8snetError
from tracer.service_lb import BACKEND, SERVICE, SERVICE_KEY, SLOT_KEY

PINS = "/sys/fs/bpf/k8snet"
MAPPED = bytes(10) + b"\xff\xff"


def list_of(world: World, node: str, service: str, namespace: str) -> tuple[int, int]:
    """The number of the list in which a Service's first port has its endpoints, and how many. Raises K8snetError."""
    spec = (world.get("service", service, namespace) or {}).get("spec")
    if spec is None:
        raise K8snetError(f"there is no Service {namespace}/{service}")
    port = spec["ports"][0]
    protocol = socket.IPPROTO_UDP if port.get("protocol") == "UDP" else socket.IPPROTO_TCP
    wanted = SERVICE_KEY.pack(_packed(spec["clusterIP"]), port["port"].to_bytes(2, "big"), protocol, 0)
    for entry in _entries(world, node, "services"):
        if _bytes(entry["key"]) == wanted:
            _, number, count, _, _ = SERVICE.unpack(_bytes(entry["value"]))
            return number, count
    raise K8snetError(f"the map services of {node} has no {spec['clusterIP']}:{port['port']}")


def set_slot(world: World, node: str, number: int, slot: int, ip: str, port: int) -> None:
    """Write an endpoint into a slot of a list. Raises K8snetError."""
    key = SLOT_KEY.pack(number, slot)
    value = BACKEND.pack(_packed(ip), port.to_bytes(2, "big"), 1, 0)
    ran = world.run(
        node, "bpftool", "map", "update", "pinned", f"{PINS}/slots", "key", *_words(key), "value", *_words(value)
    )
    if ran.code != 0:
        raise K8snetError(f"bpftool on {node}: {ran.err.strip() or ran.out.strip()}")


def _entries(world: World, node: str, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = world.run(node, "bpftool", "-j", "map", "dump", "pinned", f"{PINS}/{name}").json()
    return entries


def _packed(ip: str) -> bytes:
    address = ipaddress.ip_address(ip)
    return MAPPED + address.packed if address.version == 4 else address.packed


def _bytes(words: list[str]) -> bytes:
    return bytes(int(word, 16) for word in words)


def _words(data: bytes) -> list[str]:
    return [f"0x{byte:02x}" for byte in data]
