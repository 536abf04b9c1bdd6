"""The supervisor that dies before it has a /run of its own: the machine keeps its /run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PROGRAM = """
import os, sys
from pathlib import Path
from labs.cluster.supervisor import _Mortality

def is_there():
    return "k8snet-test /run " in Path("/proc/self/mounts").read_text()

class Ledger:
    def remove_everything(self):
        print("mounted" if is_there() else "unmounted", flush=True)

alive, guardian = os.pipe()
os.close(guardian)
mortal = _Mortality(Ledger(), alive)
mortal.has_own_run = sys.argv[1] == "own"
mortal.watch_guardian()
"""


@pytest.mark.parametrize(("whose", "expected"), [("machine's", "mounted"), ("own", "unmounted")])
def test_run_is_unmounted_only_when_it_is_our_own(whose: str, expected: str) -> None:
    """Played in mount and pid namespaces of the test's own, with something mounted on /run, as on any real machine."""
    inside = 'mount -t tmpfs k8snet-test /run && exec "$@"'
    command = [
        "unshare",
        "-m",
        "-p",
        "-f",
        "--mount-proc",
        "sh",
        "-c",
        inside,
        "sh",
        sys.executable,
        "-c",
        PROGRAM,
        whose,
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")
