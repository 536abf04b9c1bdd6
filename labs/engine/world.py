"""The cluster that a lesson runs on, as checks, facts and faults see it: one protocol, and commands of this machine.

What belongs here: what can be asked of an API, of nodes, pods, and of the tracer on a node. What does not: how that is
done on the cluster in miniature (`labs.engine.miniature`) and on clusters made by kind (`labs.engine.kind`), and what
is asked (`labs.engine.checks`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tracer.errors import K8snetError, MissingError

RUN_SECONDS = 20.0
PROBE_RATE = 1000  # flows a second
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

    def get(self, kind: str, name: str | None = None, namespace: str | None = None, selector: str = "") -> Any:
        """An object (with `name`; None when there is none), or the list of all objects of a kind, as kubectl names it.

        `namespace`: "*" for all of them. Raises K8snetError.
        """

    def apply(self, text: str) -> Ran:
        """Apply a lesson's manifest, of one or more documents."""

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """Run a command on a node or in a pod; exit code 124 when it takes longer. Raises Blocked."""

    def services(self, node: str) -> list[dict[str, Any]]:
        """The Services as the rules (or maps) of a node have them: what `k8snet-trace services -o json` prints."""

    def explain(self, node: str, to: str, source: str | None = None) -> dict[str, Any]:
        """What a node's rules do with a packet to `to`: what `k8snet-trace explain -o json` prints."""

    def probe(self, source: str, to: str, count: int) -> dict[str, Any]:
        """Where crafted packets from a node or pod to `to` end: what `k8snet-trace probe -o json` prints."""

    def nodes(self) -> list[str]:
        """The nodes' names."""


def kubectl_get(world: World, kind: str, name: str | None, namespace: str | None, selector: str) -> Any:
    """See World.get: by kubectl, which finds every kind. Raises K8snetError."""
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
