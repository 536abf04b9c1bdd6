"""A world for tests of the engine: it answers what a test lays down, and keeps what was asked of it.

What belongs here: the world. What does not: clusters (`tests.labs.lab`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labs.engine.checks import Context
from labs.engine.world import RUN_SECONDS, Ran, kubectl_get

NOT_FOUND = Ran(1, "", 'Error from server (NotFound): services "web" not found')


@dataclass
class FakeWorld:
    """`objects`: "kind namespace/name" or "kind namespace" -> object or list. `commands`: what a target prints.
    `applied`: manifests.
    """

    objects: dict[str, Any] = field(default_factory=dict)
    commands: dict[str, Ran] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    kubeconfig: Path = Path("/nowhere")

    def kubectl(self, *arguments: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World."""
        self.asked.append(" ".join(arguments))
        if arguments[0] != "get":
            return Ran(0, "", "")
        words = [word for word in arguments[1:] if word not in ("-o", "json")]
        namespace = "*"
        if "-n" in words:
            at = words.index("-n")
            namespace = words[at + 1]
            del words[at : at + 2]
        if "-l" in words:
            del words[words.index("-l") :]
        kind, *name = (word for word in words if not word.startswith("--"))
        if name:
            found = self.objects.get(f"{kind} {namespace}/{name[0]}")
            return NOT_FOUND if found is None else Ran(0, json.dumps(found), "")
        return Ran(0, json.dumps({"items": self.objects.get(f"{kind} {namespace}", [])}), "")

    def get(self, kind: str, name: str | None = None, namespace: str | None = None, selector: str = "") -> Any:
        """See World."""
        return kubectl_get(self, kind, name, namespace, selector)

    def apply(self, text: str) -> Ran:
        """See World."""
        self.applied.append(text)
        return self.kubectl("apply", "-f", "-", feed=text)

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World: the first entry of `commands` whose key begins the command."""
        text = f"{target}: {' '.join(command)}"
        self.asked.append(text)
        return next((ran for key, ran in self.commands.items() if text.startswith(key)), Ran(127, "", "not found"))

    def services(self, node: str) -> list[dict[str, Any]]:
        """See World."""
        found: list[dict[str, Any]] = self._trace(node, "services", "-o", "json").json()
        return found

    def explain(self, node: str, to: str, source: str | None = None) -> dict[str, Any]:
        """See World."""
        options = ["--source", source] if source else []
        found: dict[str, Any] = self._trace(node, "explain", to, "-o", "json", *options).json()
        return found

    def probe(self, source: str, to: str, count: int) -> dict[str, Any]:
        """See World."""
        found: dict[str, Any] = self._trace(source, "probe", to, "--count", str(count)).json()
        return found

    def _trace(self, node: str, *arguments: str) -> Ran:
        return self.run(node, "k8snet-trace", *arguments)

    def nodes(self) -> list[str]:
        """See World."""
        return ["node1", "node2"]


def context(world: FakeWorld, tmp_path: Path | None = None, since: float = 0.0) -> Context:
    """What checks are given; the live trace is at records.jsonl below `tmp_path`."""
    files = tmp_path or Path("/nowhere")
    return Context(world, since, files, files / "records.jsonl" if tmp_path else None)


def prints(document: Any) -> Ran:
    """A command that prints a document as JSON."""
    return Ran(0, document if isinstance(document, str) else json.dumps(document), "")
