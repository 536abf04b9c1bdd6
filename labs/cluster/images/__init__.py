"""What can run in a pod: image names, and the small built-in programs that they stand for.

Stands for image registries and the images in them. A name is known by its last part without tag or digest, so that
`registry.k8s.io/kube-proxy:v1.30.5`, `kube-proxy` and `example.org/kube-proxy@sha256:…` are the same program here. A
built-in program runs in the container's first process; any image's `command` runs a program of the machine instead.
Left out: image contents.

What belongs here: the table and, one module each, the programs that play a learner's workload. What does not: starting
them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property

from labs.cluster.runtime.container import Container, Program
from tracer.errors import K8snetError


class NotPulled(K8snetError):
    """An image can't be had."""


class UnknownImage(NotPulled):
    """No program goes by that image name; the message lists those that do."""


@dataclass(frozen=True)
class Image:
    """One image, whose program is `module`.`function`. `announces`: it tells when it serves; `entrypoint`: a
    container's `args` are arguments of the program. Where there is none they are a program of their own, as with
    images that have a CMD only."""

    name: str
    summary: str
    module: str
    function: str = "main"
    announces: bool = True
    entrypoint: bool = True

    @cached_property
    def _program(self) -> Program:
        program: Program = getattr(importlib.import_module(self.module), self.function)
        return program

    def run(self, container: Container) -> None:
        """Run the program until it ends."""
        self._program(container)


IMAGES = {
    image.name: image
    for image in (
        Image("http-echo", "an HTTP server that tells its pod's name", "labs.cluster.images.http_echo"),
        Image("tcp-echo", "sends back what it gets over TCP", "labs.cluster.images.echo", "tcp"),
        Image("udp-echo", "sends back what it gets over UDP", "labs.cluster.images.echo", "udp"),
        Image("client", "does nothing; has a shell, curl and dig", "labs.cluster.images.client", entrypoint=False),
        Image("nginx", "nginx, for load tests; tells its pod's name", "labs.cluster.images.nginx", announces=False),
        Image("coredns", "the cluster's DNS server", "labs.cluster.dns.server"),
        Image("kube-proxy", "writes the rules of Services", "labs.cluster.kubeproxy"),
        Image("service-lb", "serves Services by eBPF maps", "labs.cluster.ebpfproxy"),
        Image("kindnetd", "routes between nodes", "labs.cluster.kindnet"),
        Image("node", "a node: the container runtime of its pods", "labs.cluster.images.node"),
    )
}
_INTERNAL = frozenset({"node"})


def find(reference: str) -> Image:
    """The image that a pod's `image:` names. Raises UnknownImage."""
    name = reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
    try:
        return IMAGES[name]
    except KeyError:
        known = ", ".join(sorted(IMAGES.keys() - _INTERNAL))
        raise UnknownImage(f'there is no image "{reference}" here; known are {known}') from None


def preload() -> None:
    """Import all programs, so that processes forked from this one start at once and share their memory."""
    for image in IMAGES.values():
        importlib.import_module(image.module)
