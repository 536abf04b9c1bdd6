"""What the kubelet holds for a pod and its containers, and the PodStatus that it makes of that.

Stands for pkg/kubelet/kubelet_pods.go (getPhase, generateAPIPodStatus) and pkg/kubelet/status/generate.go. Left out:
ephemeral containers, readiness gates, resources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from labs.cluster.containerio import ContainerIO
from labs.cluster.network import Attachment
from labs.cluster.resources import Object
from labs.cluster.runtime.client import Started
from labs.cluster.store import now

DEADLINE = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


@dataclass(slots=True)
class RunningContainer:
    """One container of a pod, over all its restarts. `said`: the newest word of each kind that its program told us."""

    name: str
    image: str
    id: str = ""
    started: Started | None = None
    io: ContainerIO | None = None
    cgroup: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: list[int] = field(default_factory=list)
    is_init: bool = False
    ready: bool = False
    is_sidecar: bool = False
    restarts: int = 0
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Object = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    probed: bool = False  # its startup probe, if it has one, succeeded
    first_start: asyncio.Event = field(default_factory=asyncio.Event)  # ... at least once

    @property
    def initialized(self) -> bool:
        """Whether the containers after it may start."""
        return self.probed if self.is_sidecar else self.succeeded

    @property
    def succeeded(self) -> bool:
        """Whether it has ended, and well."""
        ended = self.state.get("terminated")
        return ended is not None and ended["exitCode"] == 0

    def status(self) -> Object:
        """The ContainerStatus of the API."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "containerID": f"k8snet://{self.id}" if self.id else "",
            "ready": self.succeeded if self.is_init and not self.is_sidecar else self.ready,
            "started": self.probed,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last_state,
        }


@dataclass(slots=True)
class RunningPod:
    """What the kubelet holds for one pod. `netns`: descriptor of its network namespace, None on the node's network."""

    pod: Object
    netns: int | None = None
    sandbox: str | None = None
    attachment: Attachment | None = None
    addresses: tuple[str, ...] = ()
    init: list[RunningContainer] = field(default_factory=list)
    containers: list[RunningContainer] = field(default_factory=list)
    start_time: str = ""
    expired: bool = False  # its activeDeadlineSeconds are over

    def set_netns(self, netns: int) -> None:
        """Take over its network namespace."""
        self.netns = netns

    def set_attachment(self, attachment: Attachment) -> None:
        """Take over its cable, and the addresses that came with it."""
        self.attachment, self.addresses = attachment, attachment.addresses

    @property
    def grace(self) -> float:
        """How many seconds the containers have between being asked to end and being made to."""
        asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
        return float(self.pod["spec"]["terminationGracePeriodSeconds"] if asked is None else asked)


def pod_status(running: RunningPod, current: Object, node_addresses: Sequence[str], trouble: dict[str, str]) -> Object:
    """The PodStatus. `current`: the pod in the API; `trouble`: reason and message, if the pod itself is in trouble."""
    containers = running.containers
    # Once a container has begun, a sidecar that starts again does not take that back.
    waiting = [] if _has_begun(containers) else [entry.name for entry in running.init if not entry.initialized]
    incomplete = {"reason": "ContainersNotInitialized", "message": _words("incomplete", waiting)} if waiting else {}
    sidecars = [entry for entry in running.init if entry.is_sidecar]
    unready = [entry.name for entry in (*sidecars, *containers) if not entry.ready]
    ready, phase = bool(containers) and not unready, _phase(running)
    if phase == "Succeeded":
        incomplete, why = {"reason": "PodCompleted"}, {"reason": "PodCompleted"}
    elif phase == "Failed":
        incomplete, why = incomplete and {"reason": "PodFailed"}, {"reason": "PodFailed"}
    else:
        why = {} if ready else {"reason": "ContainersNotReady", "message": _words("unready", unready)}
    return {
        **{key: current["status"][key] for key in ("qosClass",) if key in current["status"]},
        **(dict(zip(("reason", "message"), DEADLINE, strict=True)) if running.expired else trouble),
        "phase": phase,
        "conditions": [
            _condition(current, "PodReadyToStartContainers", bool(running.addresses)),
            _condition(current, "Initialized", not waiting or phase == "Succeeded", **incomplete),
            _condition(current, "Ready", ready, **why),
            _condition(current, "ContainersReady", ready, **why),
            _condition(current, "PodScheduled", True),
        ],
        "hostIP": node_addresses[0],
        "hostIPs": [{"ip": address} for address in node_addresses],
        **({"podIP": running.addresses[0]} if running.addresses else {}),
        "podIPs": [{"ip": address} for address in running.addresses],
        "startTime": running.start_time,
        **({"initContainerStatuses": [entry.status() for entry in running.init]} if running.init else {}),
        "containerStatuses": [entry.status() for entry in containers],
    }


def _has_begun(containers: Sequence[RunningContainer]) -> bool:
    return any(entry.restarts or entry.last_state or "waiting" not in entry.state for entry in containers)


def _phase(running: RunningPod) -> str:
    if running.expired:
        return "Failed"
    containers, never = running.containers, running.pod["spec"]["restartPolicy"] == "Never"
    first = [entry for entry in running.init if not entry.is_sidecar]
    if never and any("terminated" in entry.state and not entry.succeeded for entry in first):
        return "Failed"
    ended = [entry.state["terminated"] for entry in containers if "terminated" in entry.state]
    beside = any(entry.is_sidecar and "running" in entry.state for entry in running.init)  # these end last
    if containers and len(ended) == len(containers) and running.pod["spec"]["restartPolicy"] != "Always" and not beside:
        return "Succeeded" if all(entry["exitCode"] == 0 for entry in ended) else "Failed"
    return "Running" if _has_begun(containers) else "Pending"


def _words(kind: str, names: Sequence[str]) -> str:
    return f"containers with {kind} status: [{' '.join(names)}]"


def _condition(current: Object, kind: str, state: bool, **why: str) -> Object:
    """A condition; it keeps the time of its last transition."""
    word = "True" if state else "False"
    before = {entry["type"]: entry for entry in current["status"].get("conditions") or ()}.get(kind)
    since = before["lastTransitionTime"] if before is not None and before["status"] == word else now()
    return {"type": kind, "status": word, "lastProbeTime": None, "lastTransitionTime": since, **why}


def full_name(pod: Object) -> str:
    """A pod as kubelet writes it in messages: NAME_NAMESPACE(UID)."""
    metadata = pod["metadata"]
    return f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
