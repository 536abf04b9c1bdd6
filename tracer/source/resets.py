"""Connections that were established and reset before a byte came: one record, whose outcome is "reset".

What belongs here: matching what the kernel tells of a RST with the record of its connection. What does not: reading
either (`tracer.source.live`).

For connect() such a connection has succeeded, and the kernel has told so; a program learns of the reset when it reads.
Somebody who looks for the reason wants to see it, so a record is kept back for a few milliseconds in which the RST may
come.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from tracer.events import OUTCOME_OFFSET, Outcome, Shape
from tracer.source.ringbuffer import Item


def resets_applied(batch: Iterable[Item], told: Iterable[Item]) -> list[Item]:
    """The batch without its resets, and with the outcome of those connections changed that one in `told` is about.

    `told`: all items in which a reset may be. A reset tells its time, source, netns and protocol. One that is about no
    connection of the batch is dropped: it came late, or is about the accepting side, or about one of an earlier batch.
    """
    resets = {_key(item): item for item in told if item[3][OUTCOME_OFFSET] == Outcome.RESET}
    result = []
    for item in batch:
        shape = Shape.unpack(item[3])
        if shape.outcome == Outcome.RESET:
            continue
        reset = resets.get(_key(item)) if shape.outcome == Outcome.ESTABLISHED else None
        result.append(_reset(item, shape, reset) if reset is not None and reset[0] >= item[0] else item)
    return result


def _key(item: Item) -> tuple[int, int, bytes]:
    shape = Shape.unpack(item[3])
    return item[2], shape.netns, shape.source


def _reset(item: Item, shape: Shape, reset: Item) -> Item:
    changed = shape._replace(outcome=Outcome.RESET, errno=errno.ECONNRESET)
    return item[0], reset[0] - item[0], item[2], changed.pack()
