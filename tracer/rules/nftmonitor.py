"""Changes of nftables' tables in nft's own words: what `nft monitor` prints, transaction by transaction.

What belongs here: running it, and its lines up to a generation. What does not: what the lines change (`nftdeltas`), and
which chains of iptables-nft changed (`nfevents`).

To print even one chain, nft looks at every set of the table: with 10,000 Services that takes 2.5 s, and the whole table
6 s. `nft monitor` looks once, when it starts, and then prints each change within milliseconds. The last line
of a transaction is `# new generation N by process …` (nftables src/monitor.c).
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
import weakref

from tracer import netns
from tracer.rules.live import PATH

_GENERATION = re.compile(r"# new generation (\d+) by process .*")
_PATIENCE = 0.5  # for a transaction to be printed
_MOST_LINES = 100_000  # that are kept; of more changes at once, it is quicker to read all
# Ends nft when standard input does, also after our SIGKILL. A signal at our death would not do: it comes at the end of
# the thread that started nft, which ends at once.
_GUARDED = '"$0" -a monitor & exec >&-; read -r _; kill $!'


class Monitor:
    """A running `nft monitor` in a network namespace. Ends with this object."""

    def __init__(self, netns_path: str | None) -> None:
        """Raises OSError when nft is not installed or can't be run, and as `tracer.netns.run_in` does."""
        program = shutil.which("nft", path=os.environ.get("PATH", "") + ":" + PATH)
        if program is None:
            raise FileNotFoundError("nft")
        environment = {**os.environ, "LC_ALL": "C"}
        self._process = netns.run_in(
            netns_path,
            lambda: subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            ),
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""
        self._lines: list[str] = []
        self.close = weakref.finalize(self, _end, self._process)

    def take(self, after: int, generation: int) -> list[str] | None:
        """The lines of all transactions behind generation `after`, up to `generation` at least.

        None when it did not print them all: it is not ready yet, has ended, or has lost some.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            found = self._complete(after, generation)
            left = deadline - time.monotonic()
            if found is not None or left <= 0 or not self._read(left):
                return found

    def _complete(self, after: int, generation: int) -> list[str] | None:
        taken: list[str] = []
        for index, line in enumerate(self._lines):
            match = _GENERATION.fullmatch(line)
            if match is None:
                taken.append(line)
                continue
            told = int(match[1])
            if told <= after:
                taken.clear()  # read already
                continue
            if told != after + 1:
                return None
            after = told
            if told >= generation:
                del self._lines[: index + 1]
                return taken
        if len(self._lines) > _MOST_LINES:
            self._lines.clear()
        return None

    def _read(self, seconds: float) -> bool:
        """Take in what is printed; False when nothing comes in time, or no more ever."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return False
        data = self._process.stdout.read(1 << 20)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += (line.decode(errors="replace") for line in lines)
        return True


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
