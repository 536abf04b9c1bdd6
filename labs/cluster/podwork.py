"""What all that works on one pod shares: the node's means, the pod, its Events and its status in the API.

Stands for the parts of a kubelet that its pod workers are handed (the status manager, the event recorder, the caches of
ConfigMaps and Secrets, the token manager). What does not belong here: what is done with them (`labs.cluster.podworker`,
`labs.cluster.containerworker`, `labs.cluster.containerrun`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from labs.cluster.certificates import ISSUER, TokenIssuer
from labs.cluster.events import Recorder
from labs.cluster.imagefiles import ImageFiles
from labs.cluster.network import NetlinkThread, NodeNetwork
from labs.cluster.podenv import Sources
from labs.cluster.podspec import NodeFacts, node_fields
from labs.cluster.podstatus import RunningPod, pod_status
from labs.cluster.podvolumes import PodVolumes
from labs.cluster.resources import CONFIGMAPS, NODES, PODS, SECRETS, SERVICES, Object, key_of
from labs.cluster.runtime.client import Runtime
from labs.cluster.store import NotFound, Store
from labs.cluster.volumecontents import Origin

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What a node has to run pods with."""

    node: NodeFacts
    store: Store
    runtime: Runtime
    images: ImageFiles
    netlink: NetlinkThread
    network: NodeNetwork
    tokens: TokenIssuer
    events: Recorder


@dataclass
class PodWork:
    """One pod on its node. `ending_at`: when its grace period is over, in the event loop's time, once it is to go."""

    means: Means
    running: RunningPod
    volumes: PodVolumes = field(init=False)
    ending_at: float | None = None
    _tokens: dict[tuple[str, int], tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.volumes = PodVolumes(self.running.pod, self.means.runtime)

    @property
    def pod(self) -> Object:
        """The pod as the API has it."""
        return self.running.pod

    @property
    def is_deleted(self) -> bool:
        """Whether it is to go."""
        return "deletionTimestamp" in self.pod["metadata"]

    def grace(self) -> float:
        """How many seconds a container has from now on to end by itself."""
        if self.ending_at is None:
            return self.running.grace
        return max(self.ending_at - asyncio.get_running_loop().time(), 0.0)

    def tell(self, container: str, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event about one of its containers."""
        write = self.means.events.warning if warning else self.means.events.normal
        if self._current() is not None:
            kind = "initContainers" if any(one.name == container for one in self.running.init) else "containers"
            write(self.pod, reason, message, f"spec.{kind}{{{container}}}")

    def tell_of_pod(self, reason: str, message: str) -> None:
        """An Event about all of it."""
        if self._current() is not None:
            self.means.events.normal(self.pod, reason, message)

    def warn(self, reason: str, message: str) -> None:
        """The same about something wrong."""
        if self._current() is not None:
            self.means.events.warning(self.pod, reason, message)

    def report(self, **trouble: str) -> None:
        """Write its status, if it is still there and still the same. `trouble`: reason and message of the whole pod."""
        current = self._current()
        if current is not None:
            status = pod_status(self.running, current, self.means.node.addresses, trouble)
            with contextlib.suppress(NotFound):
                self.means.store.update(PODS, {**current, "status": status})

    def _current(self) -> Object | None:
        current = self.means.store.find(PODS, *key_of(self.pod))
        return current if current is not None and current["metadata"]["uid"] == self.pod["metadata"]["uid"] else None

    def sources(self, *, services: bool = True) -> Sources:
        """What its environment and volumes may refer to. `services`: only environments do, and there may be many."""
        store, namespace = self.means.store, self.pod["metadata"]["namespace"]
        node = store.find(NODES, "", self.means.node.name) or {}
        configs, secrets = (_by_name(store.list(kind, namespace)) for kind in (CONFIGMAPS, SECRETS))
        allocatable = (node.get("status") or {}).get("allocatable") or {}
        return Sources(store.list(SERVICES) if services else (), configs, secrets, allocatable)

    def origin(self) -> Origin:
        """What its volumes are made of."""
        sources = self.sources(services=False)
        return Origin(self.pod, sources, self._token, node_fields(self.means.node, self.running.addresses))

    def _token(self, audience: str, seconds: int) -> str:
        """A token of its service account: the last one, until four fifths of its life are over (token_manager.go)."""
        token, until = self._tokens.get((audience, seconds), ("", 0.0))
        if until < time.monotonic():
            metadata, account = self.pod["metadata"], self.pod["spec"]["serviceAccountName"]
            who = (metadata["namespace"], account, metadata["name"], metadata["uid"])
            token = self.means.tokens.issue(*who, audiences=(audience or ISSUER,), seconds=seconds)
            self._tokens[audience, seconds] = (token, time.monotonic() + 0.8 * seconds)
        return token


def _by_name(items: Iterable[Object]) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in items}


async def to_the_end(work: Awaitable[T], keep: Callable[[T], object]) -> None:
    """Wait for `work` and keep its result, even if cancelled meanwhile: what it makes has to be taken apart again."""
    task = asyncio.ensure_future(work)
    try:
        keep(await asyncio.shield(task))
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            keep(await task)
        raise
