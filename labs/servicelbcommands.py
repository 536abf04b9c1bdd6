"""The commands of `k8snet-lab` on a node of a real cluster: service-lb run, service-lb remove.

What belongs here: options in, one call each, printing. What does not: anything another program could use
(`labs.cluster.ebpfnode`). Heavy imports wait until they are needed.
"""

from __future__ import annotations

from pathlib import Path

import click

from tracer.program import say

PINS = "/sys/fs/bpf/k8snet"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
FAMILIES = {"ipv4": (4,), "dual": (4, 6)}


def add_commands(cli: click.Group) -> None:
    """Give the group its commands about the eBPF datapath on real nodes."""
    pins = click.option(
        "--pins",
        type=click.Path(file_okay=False, path_type=Path),
        default=PINS,
        show_default=True,
        help="Where programs and maps are pinned, in a bpffs.",
    )

    @cli.group("service-lb", hidden=True)
    def service_lb() -> None:
        """The eBPF Service datapath of a node that has no kube-proxy (docs/ebpf.md).

        For nodes of real clusters. In the cluster in miniature it is `k8snet-lab up --proxy ebpf`.
        """

    @service_lb.command(
        epilog="""\b
Example:
  k8snet-lab service-lb run --node kind-worker --api-server https://kind-control-plane:6443
"""
    )
    @click.option("--node", required=True, help="This node's name in the API.")
    @click.option("--api-server", required=True, metavar="URL", help="The API, at an address that is no Service's.")
    @click.option(
        "--service-account",
        "account",
        type=click.Path(path_type=Path),
        default=ACCOUNT,
        show_default=True,
        help="A directory with token and ca.crt.",
    )
    @click.option(
        "--cgroup",
        type=click.Path(file_okay=False, path_type=Path),
        default="/sys/fs/cgroup",
        show_default=True,
        help="The node's cgroup, in which all of its pods are.",
    )
    @click.option("--ip-family", type=click.Choice(list(FAMILIES)), default="ipv4", show_default=True)
    @pins
    def run(node: str, api_server: str, account: Path, cgroup: Path, ip_family: str, pins: Path) -> None:
        """Serve Services on this node by eBPF maps, in the place of kube-proxy, until SIGTERM.

        It runs as root in the node's own namespaces. The programs stay when it ends, and go on.
        """
        import logging
        import sys

        from labs.cluster import ebpfnode
        from labs.cluster.ebpfproxy import Settings

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
        ebpfnode.run(
            Settings(
                node=node,
                families=FAMILIES[ip_family],
                api_server=api_server,
                cgroup=cgroup,
                pins=pins,
                account=account,
            )
        )

    @service_lb.command()
    @pins
    def remove(pins: Path) -> None:
        """Take all of it away from this node: programs, maps, and what else was changed. Services then do not work."""
        from labs.cluster import ebpfnode

        say("removed" if ebpfnode.remove(pins) else "there is nothing to remove")
