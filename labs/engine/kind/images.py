"""Manifests of lessons, made to run on kind: built-in images become public ones that do the same.

The miniature cluster's images are small programs of its own (`labs.cluster.images`), which no registry has.
images.yaml beside this file says what stands for each; the servers are one script, echo.py, which the image's Python
runs.

What belongs here: rewriting manifests. What does not: applying them, and images that everybody can pull, which stay.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FIELDS = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}
SERVING = "/tmp/serving"  # in the container: echo.py makes it when it serves
START_TRIES = 120  # one a second: Python may take its time on a busy machine


def translate(text: str) -> str:
    """A manifest, of one or more documents, with its images replaced."""
    documents = list(yaml.safe_load_all(text))
    for container in _containers(documents):
        _replace(container)
    return yaml.safe_dump_all(documents, sort_keys=False)


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Image name -> what stands for it."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "images.yaml").read_text(encoding="utf-8"))
    return found


def _containers(node: Any) -> Iterator[dict[str, Any]]:
    """All containers below, of whatever kind of object."""
    if isinstance(node, list):
        for item in node:
            yield from _containers(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from (one for one in value if isinstance(one, dict))
            else:
                yield from _containers(value)


def _replace(container: dict[str, Any]) -> None:
    stands_for = table().get(container.get("image", ""))
    if stands_for is None:
        return
    container["image"] = stands_for["image"]
    if "command" in container:
        return
    if "serves" not in stands_for:
        container["command"] = stands_for["command"]
        return
    ports = _ports(container, stands_for)
    script = (HERE / "echo.py").read_text(encoding="utf-8")
    container["command"] = ["python3", "-c", script, stands_for["serves"], *map(str, ports)]
    container.pop("args", None)
    fields = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in FIELDS.items()]
    container["env"] = [*container.get("env", ()), *fields]
    # Built-in images tell when they serve; elsewhere somebody has to ask, until then and no longer. Not over the
    # network: a probe's packets would be among those that lessons capture.
    container["env"].append({"name": "SERVING", "value": SERVING})
    probe = {"exec": {"command": ["test", "-e", SERVING]}, "periodSeconds": 1, "failureThreshold": START_TRIES}
    container.setdefault("startupProbe", probe)


def _ports(container: dict[str, Any], stands_for: dict[str, Any]) -> list[int]:
    """Those that the built-in image would listen on: --port in args, else what is declared, else its own."""
    args = container.get("args") or []
    if "--port" in args:
        return [int(args[args.index("--port") + 1])]
    declared = container.get("ports") or []
    wanted = [one["containerPort"] for one in declared if one.get("protocol", "TCP") == stands_for["protocol"]]
    return wanted or [stands_for["port"]]
