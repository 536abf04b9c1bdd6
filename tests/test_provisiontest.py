"""What is left of scripts/provisiontest when it is ended: nothing, not even when it is killed.

What belongs here: how it ends. What does not: provisioning, which the script itself tries.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

pytestmark = pytest.mark.root


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A place for the script, where making the first tree never ends."""
    scripts, fakes = tmp_path / "scripts", tmp_path / "bin"
    scripts.mkdir(), fakes.mkdir()
    shutil.copy(PROJECT / "scripts/provisiontest", scripts)
    for path, text in (
        (scripts / "setup", ""),
        (fakes / "vagrant", ""),
        (fakes / "mmdebstrap", f"touch {tmp_path}/.cache/trees/inside {tmp_path}/began; exec sleep 987654"),
    ):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    yield tmp_path
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def processes(checkout: Path) -> list[int]:
    """Those that live, and have anything to do with the place: by what they run, or by what they see mounted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "cmdline").read_text(errors="replace") + (process / "mountinfo").read_text()
        except OSError:
            continue  # it has ended
        if str(checkout) in lines or "987654" in lines:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_leaves_nothing_behind(checkout: Path, number: signal.Signals, patience: float) -> None:
    env = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}"}
    script = subprocess.Popen([checkout / "scripts/provisiontest"], env=env, stderr=subprocess.DEVNULL)
    wait_for((checkout / "began").exists, 20 * patience)
    assert len(processes(checkout)) > 3
    assert list((checkout / ".cache/trees").iterdir()) == []  # what is inside is not seen from here
    script.send_signal(number)
    assert script.wait(timeout=10 * patience) != 0
    wait_for(lambda: processes(checkout) == [], 5 * patience)
    assert list((checkout / ".cache/trees").iterdir()) == []


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
