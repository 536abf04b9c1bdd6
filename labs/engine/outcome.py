"""What a check says: pass, or fail with a reason, and what a learner needs to go on from there.

What belongs here: the values. What does not: looking (`labs.engine.checks`), and the words around them (`tell`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """`ERROR` is ours and never the learner's; `BLOCKED`: something is missing that has nothing to do with the step."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found.

    `reason`: a word for the failure that wrong answers name, such as "no-endpoints"; empty unless it failed.
    `expected`, `seen`: sentences. `look`: what to look at next, best a command.
    """

    result: Result
    seen: str
    reason: str = ""
    expected: str = ""
    look: str = ""

    @property
    def passed(self) -> bool:
        """Whether it passed."""
        return self.result is Result.PASS


def passed(seen: str) -> Outcome:
    """All is as it should be; `seen` is told to the learner."""
    return Outcome(Result.PASS, seen)


def failed(reason: str, *, expected: str, seen: str, look: str) -> Outcome:
    """Something is not as it should be."""
    return Outcome(Result.FAIL, seen, reason, expected, look)
