"""What a command is doing, on standard error: one line that changes on a terminal, else nothing.

What belongs here: that line. What does not: what stands in it, and bars (`labs.cli`).
"""

from __future__ import annotations

import sys
import time
from typing import Any


class StatusLine:
    """Use it as a context manager. `seconds`: how long the body took, once it has ended."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._status: Any = None

    def __enter__(self) -> StatusLine:
        self._began = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        return self

    def show(self, what: str) -> None:
        """Say something else."""
        if self._status is not None:
            self._status.update(what)

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        if self._status is not None:
            self._status.stop()
