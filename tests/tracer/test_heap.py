"""Memory that is freed, as the kernel sees it."""

from __future__ import annotations

import subprocess
import sys

# Pieces of 300 kB, three at a time: more than glibc keeps by itself once it has seen one of them freed.
_COUNT = """
import resource, sys
from tracer import heap

if sys.argv[1] == "keep":
    heap.keep(4 << 20)
third = b"x" * 100_000


def pieces(times):
    for _ in range(times):
        made = [third * 3 for _ in range(3)]
        del made


pieces(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pieces(100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults while such pieces are made and thrown away, a hundred times."""
    command = [sys.executable, "-c", _COUNT, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    assert faults("keep") < 100
    assert faults("as it is") > 2000
