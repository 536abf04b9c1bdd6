"""When answers that were given may have become wrong.

What belongs here: the generation number and what makes it grow. What does not: the answers.

Whoever asks keeps answers until the generation grows. In a busy cluster something changes all the time, and nearly
always something that nobody asked about: so each question leaves its keys here, and only their changes count.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

MIN_SECONDS = 0.2  # between two generations
MAX_ASKED = 65_536  # keys; beyond, every change counts


class Changes:
    """The generation of the answers. `asked` may be called by any thread at any time; it costs one set insertion.

    To lose no change, ask first (`asked`, then read the data), and change first (write the data, then `touch`).
    """

    def __init__(self) -> None:
        self.generation = 0
        self._asked: set[str] = set()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Let the generation grow from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def asked(self, key: str) -> None:
        """Somebody is about to get an answer that depends on `key`: an address, a UID, the name of a table."""
        if len(self._asked) < MAX_ASKED:
            self._asked.add(key)

    def touch(self, keys: Iterable[str]) -> None:
        """What depends on these keys has changed."""
        asked = self._asked
        if len(asked) >= MAX_ASKED or not asked.isdisjoint(keys):
            self._wake.set()

    def mark(self) -> None:
        """Any answer may have changed."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            if self._stop.is_set():
                return
            self._wake.clear()
            self._asked = set()
            self.generation += 1
            self._stop.wait(MIN_SECONDS)
