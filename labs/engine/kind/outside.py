"""client-host on kind: a container beside the nodes, on their network and outside of the cluster.

It runs in the process namespace of node1's container, so that it ends when the cluster does, however that comes about;
`stop` removes it before.

What belongs here: its life, and its address. What does not: running commands in it (`world`).
"""

from __future__ import annotations

from contextlib import suppress

from labs.engine.kind import images
from labs.engine.kind.world import KindCluster, docker
from labs.engine.world import Blocked, Ran
from tracer.errors import K8snetError

NUMBER = 2  # of the hosts outside of the miniature cluster; 1 is the router
PULL_SECONDS = 300.0
NETWORK = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"


def start(world: KindCluster) -> None:
    """Have it, made anew. Raises K8snetError."""
    stop(world)
    node1 = world.container("node1")
    networks = _must(docker("inspect", "--format", NETWORK, node1), node1).split()
    if not networks:
        raise K8snetError(f"{node1} is on no network of Docker's")
    options = ["--detach", "--rm", "--name", world.client_host, "--network", networks[0], "--pid", f"container:{node1}"]
    image = images.table()["client"]["image"]
    done = docker("run", *options, image, "sleep", "infinity", seconds=PULL_SECONDS)
    _must(done, world.client_host)


def stop(world: KindCluster) -> None:
    """Remove it, if it is there; without Docker it is not."""
    with suppress(Blocked):
        docker("rm", "--force", world.client_host)


def address(world: KindCluster) -> str | None:
    """Its IPv4 address; None when it is not there."""
    found = docker("inspect", "--format", ADDRESS, world.client_host)
    addresses = found.out.split() if found.code == 0 else []
    return addresses[0] if addresses else None


def _must(done: Ran, what: str) -> str:
    if done.code != 0:
        raise K8snetError(f"{what}: {done.err.strip() or done.out.strip() or f'docker: exit code {done.code}'}")
    return done.out
