"""What a check is given besides its parameters.

What belongs here: the value. What does not: how a session comes by it (`labs.engine.session`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labs.engine.world import World


@dataclass(frozen=True, slots=True)
class Context:
    """`since`: when the step was entered, seconds since 1970. `workspace`: the learner's files of this lesson.

    `records`: where the live trace is kept, as JSON lines; None when the lesson keeps none.
    """

    world: World
    since: float
    workspace: Path
    records: Path | None
