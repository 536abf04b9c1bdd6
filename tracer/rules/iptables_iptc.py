"""Legacy tables read chain by chain, by python-iptables: where iptables-legacy-save is not installed.

What belongs here: the other side of `iptc_lines`, and its answers as a table whose chains are read when they are asked
for. What does not: what a line says (`iptables_rule`).

Where the program is installed it is quicker even for a few chains: libiptc fetches the whole table from the kernel
either way, which takes longer than printing it, and importing iptc alone takes a third of a second.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
import weakref
from pathlib import Path

from tracer.errors import K8snetError, ToolMissing
from tracer.rules.iptables_rule import parse_rule
from tracer.rules.iptables_save import read_any_form
from tracer.rules.model import Chain, LazyChains, Origin, Rule, Rules, Table

_PROGRAM = Path(__file__).with_name("iptc_lines.py")
_SECONDS = 60.0
_MISSING = ("ImportError", "ModuleNotFoundError", "libiptc", "libxtables")


class Asking:
    """A running iptc_lines. Ends with this object."""

    def __init__(self, family: str, table: str) -> None:
        """The process runs in the calling thread's network namespace. family: ip or ip6. The table must exist."""
        self._errors = os.memfd_create("errors")
        self._name = f"python-iptables, asked for {family} table {table},"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), family, table],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
        )
        weakref.finalize(self, _end, self._process, self._errors)

    def declarations(self) -> str:
        """The head of the saved table. Raises ToolMissing when python-iptables can't be used, K8snetError otherwise."""
        return self._answer()

    def rules(self, chain: str) -> str:
        """The lines of a chain. Raises K8snetError."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
            self._process.stdin.write(f"{chain}\n".encode())
        return self._answer()

    def _answer(self) -> str:
        deadline = time.monotonic() + _SECONDS
        length = b""
        while not length.endswith(b"\n"):
            length += self._some(1, deadline)
        left = int(length)
        pieces = []
        while left:
            pieces.append(self._some(left, deadline))
            left -= len(pieces[-1])
        return b"".join(pieces).decode(errors="replace")

    def _some(self, most: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise K8snetError(f"{self._name} did not answer within {_SECONDS:.0f} s")
        data = self._process.stdout.read(min(most, 1 << 20))
        if not data:
            words = os.pread(self._errors, 1 << 16, 0).decode(errors="replace").strip().split("\n")[-1]
            if any(sign in words for sign in _MISSING):
                raise ToolMissing(f"{self._name} can't be used: {words}", hint="apt-get install iptables")
            raise K8snetError(f"{self._name} failed: {words or 'it ended'}")
        return data


def read_table(family: str, name: str) -> Table:
    """A legacy table that exists, in the calling thread's network namespace. Raises as Asking does."""
    asking = Asking(family, name)
    head = asking.declarations()
    (declared,) = read_any_form(f"*{name}\n{head}COMMIT\n", f"{family} {name}", family).tables
    names = declared.chains
    answers: dict[str, str] = {}

    def words(chain: str) -> str:
        if chain not in answers:
            answers[chain] = asking.rules(chain)
        return answers[chain]

    def parse(line: str) -> Rule:
        return parse_rule(line, family, names)

    def make(chain: str) -> Chain:
        known = names[chain]
        text = f"*{name}\n:{chain} - [0:0]\n{words(chain)}COMMIT\n"
        (alone,) = read_any_form(text, f"{family} {name}", family).tables
        return Chain(chain, Rules(alone.chains[chain].rules.raw, parse), known.hook, known.policy, None, known.counters)

    based = tuple(chain.name for chain in declared.base_chains())
    return Table(family, name, Origin.LEGACY, LazyChains(names, words, make, based))


def _end(process: subprocess.Popen[bytes], errors: int) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()
    os.close(errors)
