"""Which container of a pod a request is about, and where that is.

Stands for validateContainer in pkg/registry/core/pod/strategy.go, which the subresources log, exec and attach share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labs.cluster.api import status
from labs.cluster.containerio import ContainerIO
from labs.cluster.resources import Object
from labs.cluster.runtime.client import Started


@dataclass(frozen=True, slots=True)
class Place:
    """A running container: its id, first process, cgroup (None without), environment, streams, working directory and
    user (as in ContainerSpec)."""

    id: str
    started: Started
    cgroup: str | None
    env: Mapping[str, str]
    io: ContainerIO
    directory: str
    user: list[int]


# Finds the running container of a pod by its name; None when it does not run.
Locate = Callable[[Object, str], Place | None]


def container_of(pod: Object, wanted: str) -> str:
    """The container that is meant, `wanted` being "" where the client does not say. Raises ApiError 400."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    known = [entry["name"] for entry in spec["containers"]]
    first = [entry["name"] for entry in spec.get("initContainers") or ()]
    if wanted:
        if wanted not in (*known, *first):
            raise status.bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(known) == 1:
        return str(known[0])
    words = f"a container name must be specified for pod {name}, choose one of: [{' '.join(known)}]"
    if first:
        words += f" or one of the init containers: [{' '.join(first)}]"
    raise status.bad_request(words)
