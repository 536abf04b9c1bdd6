"""Runs the real command in a process of its own, on pipes or on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRACE = (sys.executable, "-m", "tracer")
SECONDS = 60.0  # no command of these tests takes so long; what hangs is ended
# root without a single capability: all that a process can still do is what its files allow it
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "K8SNET_SLOW")


def environment(**more: str) -> dict[str, str]:
    """Only what a command needs: no NO_COLOR, COLUMNS or TERM of whoever runs the tests."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **more}


def run(
    *arguments: str,
    prefix: Sequence[str] = (),
    program: Sequence[str] = TRACE,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """Run the command to its end; returns a CompletedProcess with text."""
    options = {"capture_output": True, "text": True, "timeout": SECONDS, **options}
    return subprocess.run([*prefix, *program, *arguments], env=env or environment(), check=False, **options)


@contextmanager
def start(*arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command with pipes; whatever happens, it has ended afterwards."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    process = subprocess.Popen([*TRACE, *arguments], env=env or environment(), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Terminal:
    """The command with standard output (only) on a pseudo-terminal of the given size."""

    def __init__(self, *arguments: str, columns: int = 120, rows: int = 40, env: Mapping[str, str] | None = None):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [*TRACE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=env or environment(),
        )
        os.close(theirs)
        self.screen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._ours)

    def read(self, seconds: float) -> bytes:
        """What the command writes within a time; all of it is kept in `screen` too."""
        deadline = time.monotonic() + seconds
        read = b""
        while (left := deadline - time.monotonic()) > 0 and select.select([self._ours], [], [], left)[0]:
            try:
                read += os.read(self._ours, 65536)
            except OSError:  # EIO: the command has ended
                break
        self.screen += read
        return read

    def finish(self) -> list[str]:
        """Read to the command's end; returns the lines of the screen."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        self.read(0.1)
        return self.screen.decode().splitlines()


def wait_for(path: Path, seconds: float = SECONDS) -> None:
    """Wait for a file to appear."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)
