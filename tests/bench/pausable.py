"""k8snet-trace that can be switched off and on again within milliseconds: `python -m tests.bench.pausable …`.

What belongs here: letting go of the hooks and stopping the process at SIGUSR1, taking them again at SIGCONT, telling
both on the descriptor of the environment variable STATE_FD, with a byte each. What does not: anything else of the
command, which runs as it is; when to switch (`tests.bench.switching`).

Starting the command anew takes a second, and on a noisy machine two runs that far apart differ by more than what is
measured.
"""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

from tracer.cli import main
from tracer.source import live

STATE_FD = "STATE_FD"
ON, OFF = b"1", b"0"


class _Switch:
    """Switches the hooks of the sources that there are."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._sources: list[live.LiveSource] = []

    def watch(self, source: live.LiveSource) -> None:
        self._sources.append(source)

    def stop(self, *_: object) -> None:
        """Let go of all hooks, and stop until SIGCONT."""
        hooks = [hook for source in self._sources for hook in source._programs._attachments if hook._link is not None]
        for hook in hooks:
            hook.detach()
        os.write(self._told, OFF)
        os.kill(os.getpid(), signal.SIGSTOP)
        for hook in hooks:
            hook.attach()
        os.write(self._told, ON)


def run() -> None:
    """Run the command."""
    switch = _Switch(int(os.environ[STATE_FD]))
    signal.signal(signal.SIGUSR1, switch.stop)

    class Watched(live.LiveSource):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            switch.watch(self)

    with mock.patch.object(live, "LiveSource", Watched):
        main()


if __name__ == "__main__":
    run()
