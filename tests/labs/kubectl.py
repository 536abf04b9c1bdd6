"""Unmodified kubectl, in several versions where they are on this machine.

What belongs here: finding and running kubectl. What does not: assertions about what it prints.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS = 60.0
BROUGHT = Path(__file__).parents[2] / ".venv" / "kubectls"


def programs() -> list[str]:
    """The kubectl on PATH, the oldest and newest of those that lie beside it (kubectl.1.27), those that
    scripts/kubectls has brought, and those that K8SNET_KUBECTLS names (PATH:PATH)."""
    on_path = shutil.which("kubectl")
    beside = sorted(map(str, Path(on_path).resolve().parent.glob("kubectl.1.*"))) if on_path else []
    brought = sorted(map(str, BROUGHT.glob("kubectl.1.*")), reverse=on_path is None)  # the first one does most of it
    named = filter(None, os.environ.get("K8SNET_KUBECTLS", "").split(":"))
    return list(dict.fromkeys(filter(None, [on_path, *named, *brought, *beside[:1], *beside[-1:]])))


def oldest_and_newest() -> list[str]:
    """Two of `programs`, or as many as there are: what all of them have to understand, these do in the fewest tests."""
    numbers = {one: re.search(r"kubectl\.1\.(\d+)$", one) for one in programs()}
    known = sorted((int(found[1]), one) for one, found in numbers.items() if found)
    return list(dict.fromkeys([known[0][1], known[-1][1]] if known else programs()))


def name_of(program: str) -> str:
    """A short name for a program: path, or 1.27 for kubectl.1.27."""
    suffix = Path(program).name.removeprefix("kubectl").lstrip(".")
    return suffix or ("path" if program == shutil.which("kubectl") else Path(program).parent.name)


@dataclass(frozen=True)
class Kubectl:
    """One kubectl, one cluster, one namespace."""

    program: str
    kubeconfig: str
    home: Path
    namespace: str

    def __call__(self, *arguments: str, feed: str | None = None) -> str:
        """What it prints when it succeeds."""
        done = self.run(*arguments, feed=feed)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, *arguments: str, feed: str | None = None) -> str:
        """What it complains of when it fails."""
        done = self.run(*arguments, feed=feed)
        assert done.returncode != 0, f"kubectl {' '.join(arguments)} succeeded:\n{done.stdout}"
        return done.stderr

    def rows(self, *arguments: str) -> list[list[str]]:
        """The table that it prints, by columns that two spaces part."""
        return [re.split(r"\s{2,}", line.strip()) for line in self(*arguments).splitlines()]

    def run(self, *arguments: str, feed: str | None = None) -> subprocess.CompletedProcess[str]:
        """Its exit code and all that it says."""
        command = [self.program, "--namespace", self.namespace, *arguments]
        env = {"HOME": str(self.home), "KUBECONFIG": self.kubeconfig, "PATH": os.environ["PATH"]}
        return subprocess.run(
            command, input=feed, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
        )


@contextmanager
def in_namespace(program: str | None, kubeconfig: str, words: str, home: Path) -> Iterator[Kubectl]:
    """A kubectl in a namespace of its own, named after `words`. Skips the test without a kubectl."""
    if program is None:
        pytest.skip("needs kubectl; to run it: scripts/setup")
    namespace = re.sub(r"[^a-z0-9]+", "-", words.lower())[:50].strip("-")
    one = Kubectl(program, kubeconfig, home, namespace)
    assert one("create", "namespace", namespace) == f"namespace/{namespace} created\n"
    yield one
    one("delete", "namespace", namespace, "--wait=false")


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return done
