"""Which packets there can be, and with which probability: what a walk through rules hands on.

What belongs here: adding, dividing and changing them. What does not: the rules that do so (`walk`).

Ways that lead to equal packets are one. Probability 0 is that of packets which there are only if something holds that
can't be told.
"""

from __future__ import annotations

from collections.abc import Callable

from tracer.rules.packet import Packet, Tracking

Worlds = dict[Packet, float]


def merge(worlds: Worlds, others: Worlds) -> None:
    """Add these packets to those."""
    for packet, weight in others.items():
        worlds[packet] = worlds.get(packet, 0.0) + weight


def track(worlds: Worlds) -> Worlds:
    """Connection tracking sees the packets: the first ones of new flows."""
    return changed(
        worlds, lambda packet: packet._replace(tracking=Tracking.NEW) if packet.tracking is Tracking.NONE else packet
    )


def changed(worlds: Worlds, change: Callable[[Packet], Packet]) -> Worlds:
    """These packets, each as `change` makes it."""
    found: Worlds = {}
    for packet, weight in worlds.items():
        new = change(packet)
        found[new] = found.get(new, 0.0) + weight
    return found


def scaled(worlds: Worlds, factor: float) -> Worlds:
    """These packets, with so many times their probability."""
    return {packet: weight * factor for packet, weight in worlds.items()}


def by_chance(worlds: Worlds, share: float) -> tuple[Worlds, Worlds]:
    """The packets that a share of chance takes, and those that it leaves."""
    if share >= 1.0:
        return worlds, {}
    if share <= 0.0:
        return {}, worlds
    return scaled(worlds, share), scaled(worlds, 1.0 - share)
