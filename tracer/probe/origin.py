"""Where packets are sent from: --from NAMESPACE/POD, a network namespace, or a node.

What belongs here: what the user's words mean on this machine. What does not: sending (`wire`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracer import netns, procfs
from tracer.errors import K8snetError, UsageError
from tracer.names.local import local_pods
from tracer.names.model import PodName

_POD = re.compile(r"(?P<namespace>[a-z0-9][-a-z0-9]*)/(?P<pod>[a-z0-9][-.a-z0-9]*)")


@dataclass(frozen=True, slots=True)
class Origin:
    """A network namespace to send from. path: None for our own. pod: where the user named one."""

    text: str | None
    inode: int
    path: str | None = None
    pod: PodName | None = None

    def __str__(self) -> str:
        return self.text or "this network namespace"


def find(text: str | None) -> Origin:
    """The origin that is meant; None: the network namespace that we are in.

    A word without a slash is a network namespace as in `tracer.netns.resolve`, else a node of that hostname in a
    container or a miniature cluster. Raises UsageError when there is none such, or more than one.
    """
    if text is None:
        return Origin(None, netns.own())
    named = _POD.fullmatch(text)
    if named is not None:
        pod = PodName(named["namespace"], named["pod"])
        return _only(text, [inode for inode, name in local_pods() if name == pod], pod)
    try:
        path = netns.resolve(text)
    except UsageError:
        nodes = [] if "/" in text else _of_hostname(text)
        if not nodes:
            raise
        return _only(text, nodes, None)
    return Origin(text, netns.inode(path), path)


def _only(text: str, inodes: list[int], pod: PodName | None) -> Origin:
    if not inodes:
        raise UsageError(
            f"there is no pod {text} on this machine", hint="choose one that runs here, or a network namespace"
        )
    paths = {inode: path for inode in inodes if (path := netns.find(inode)) is not None}
    if len(paths) > 1:
        raise UsageError(
            f"there are {len(paths)} of the name {text} on this machine, in different clusters",
            hint=f"say which by its path: --from {min(paths.values())}",
        )
    if not paths:
        raise K8snetError(f"the network namespace of {text} is gone")
    ((inode, path),) = paths.items()
    return Origin(text, inode, path, pod)


def _of_hostname(name: str) -> list[int]:
    """The network namespaces whose first process has this hostname."""
    first: dict[int, int] = {}
    for pid in sorted(procfs.pids()):
        inode = procfs.netns_inode(pid)
        if inode is not None:
            first.setdefault(inode, pid)
    return [inode for inode, pid in first.items() if procfs.hostname(pid) == name]
