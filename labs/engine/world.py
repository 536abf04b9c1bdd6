"""The cluster that a lesson runs on, as checks, facts and faults see it: one protocol, and the cluster in miniature.

What belongs here: reaching an API, nodes, pods, and the tracer on a node. What does not: what is asked of them
(`labs.engine.checks`), and clusters made by kind (`labs.engine.kind`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tracer.errors import K8snetError, MissingError

RUN_SECONDS = 20.0
BEGIN_ANEW = "sudo k8snet-lab reset"


class Blocked(MissingError):
    """A check can't look: the cluster, or something on the way to it, is not there."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON. Raises K8snetError for a command that failed or printed something else."""
        if self.code != 0:
            raise K8snetError(f"exit code {self.code}: {self.err.strip() or self.out.strip()}")
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise K8snetError(f"no JSON: {self.out[:200]!r}") from error


class World(Protocol):
    """A cluster. Targets are a node's name, NAMESPACE/POD, or, in miniature, a host outside of the cluster.

    On every cluster the nodes have the names node1, node2, … here, the control plane's first.
    """

    @property
    def kubeconfig(self) -> Path:
        """Raises Blocked when the cluster is not there."""

    def kubectl(self, *arguments: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """Run kubectl on this cluster; exit code 124 when it takes longer."""

    def apply(self, text: str) -> Ran:
        """Apply a lesson's manifest, of one or more documents."""

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """Run a command on a node or in a pod; exit code 124 when it takes longer. Raises Blocked."""

    def trace(self, node: str, *arguments: str, seconds: float = RUN_SECONDS) -> Ran:
        """Run a subcommand of k8snet-trace about the network namespace of a node or pod; `probe` sends from there."""

    def nodes(self) -> list[str]:
        """The nodes' names."""


def get(world: World, kind: str, name: str | None = None, namespace: str | None = None, selector: str = "") -> Any:
    """An object (with `name`; None when there is none), or the list of all objects of a kind. Raises K8snetError."""
    arguments = ["get", kind, *([name] if name else []), "-o", "json"]
    if namespace is not None:
        arguments += ["--all-namespaces"] if namespace == "*" else ["-n", namespace]
    if selector:
        arguments += ["-l", selector]
    ran = world.kubectl(*arguments)
    if name and ran.code != 0 and "(NotFound)" in ran.err:
        return None
    document = ran.json()
    return document if name else document["items"]


class Miniature:
    """The cluster that `k8snet-lab up` makes."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def kubeconfig(self) -> Path:
        from labs.cluster import control

        try:
            control.ask(self.name, {"ask": "ready"})  # a cluster that was killed may have left its file behind
            return control.kubeconfig(self.name)
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error

    def kubectl(self, *arguments: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return ran(["kubectl", *arguments], feed=feed, env=env, seconds=seconds)

    def apply(self, text: str) -> Ran:
        return self.kubectl("apply", "-f", "-", feed=text)

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        _ = self.kubeconfig  # there is a cluster
        own = [sys.executable, "-m", "labs.cli", "exec", "--name", self.name, target, "--"]
        return ran([*own, *command], feed=feed, seconds=seconds)

    def trace(self, node: str, *arguments: str, seconds: float = RUN_SECONDS) -> Ran:
        where = "--from" if arguments[0] == "probe" else "--netns"
        names = ["--kubeconfig", str(self.kubeconfig)]  # maps of eBPF hold addresses only
        command = [sys.executable, "-m", "tracer", *arguments, *names, where, str(self._pids[node])]
        return ran(command, seconds=seconds)

    def nodes(self) -> list[str]:
        return [node["name"] for node in self._status["nodes"]]

    def unready(self) -> list[str]:
        """What is not yet, or no longer, as the API's objects say; [] when all is."""
        return list(self._ask()["unready"])

    @cached_property
    def _status(self) -> dict[str, Any]:
        return self._ask()

    def _ask(self) -> dict[str, Any]:
        from labs.cluster import control

        try:
            return control.status(self.name)
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error

    @property
    def _pids(self) -> dict[str, int]:
        pods = {f"{entry['namespace']}/{entry['name']}": entry["pid"] for entry in self._status["pods"]}
        return pods | {entry["name"]: entry["pid"] for entry in (*self._status["nodes"], *self._status["hosts"])}


def ran(
    command: Sequence[str],
    *,
    feed: str | None = None,
    env: dict[str, str] | None = None,
    seconds: float = RUN_SECONDS,
    directory: Path | None = None,
) -> Ran:
    """Run a command to its end. Raises Blocked when there is no such program."""
    try:
        done = subprocess.run(
            command, input=feed, capture_output=True, text=True, timeout=seconds, env=env, cwd=directory, check=False
        )
    except FileNotFoundError as error:
        raise Blocked(f"{command[0]} is not installed", hint="scripts/setup") from error
    except subprocess.TimeoutExpired as error:
        out, err = (
            part.decode(errors="replace") if isinstance(part, bytes) else part or ""
            for part in (error.output, error.stderr)
        )
        return Ran(124, out, err)
    return Ran(done.returncode, done.stdout, done.stderr)
