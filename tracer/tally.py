"""What a trace amounts to: records, losses, seconds.

What belongs here: counting, and the words for it (the summary line, the notices of losses). What does not: printing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOTICE_SECONDS = 1.0


@dataclass(slots=True)
class Tally:
    """The counts of one trace or replay. lost: events by stage; other: records of types that the line form can't show.

    backend: what the records came from; empty until the hooks are attached.
    """

    backend: str = ""
    records: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def summary(self) -> str:
        """One line: records, events lost (by stage), seconds, backend."""
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.lost.items()) if count)
        lost = f"{_number(sum(self.lost.values()), 'event')} lost" + (f" ({stages})" if stages else "")
        return f"{_number(self.records, 'record')}, {lost}, {self.seconds:.1f} s, backend {self.backend}"

    def skipped(self) -> str | None:
        """A sentence about records that the line form left out, or None."""
        if not self.other:
            return None
        types = ", ".join(f"{name} {count}" for name, count in sorted(self.other.items()))
        number = _number(sum(self.other.values()), "record")
        return f"{number} of types that the line form can't show ({types}): see -o json"


class LossNotices:
    """Turns growing loss counts into at most one notice a second."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}
        self._next = 0.0

    def due(self, losses: Mapping[str, int], now: float) -> str | None:
        """A notice of what was lost since the last one, or None; now: time.monotonic()."""
        if now < self._next or losses == self._told:
            return None
        grown = {stage: count - self._told.get(stage, 0) for stage, count in losses.items()}
        self._told = dict(losses)
        self._next = now + NOTICE_SECONDS
        stages = [(count, stage) for stage, count in grown.items() if count > 0]
        return (
            "… " + ", ".join(f"{_number(count, 'event')} lost ({stage})" for count, stage in stages) if stages else None
        )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
