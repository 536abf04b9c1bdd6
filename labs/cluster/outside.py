"""What is outside of the cluster: another network, with a host on it, and the router between it and the nodes.

Stands for the rest of the world as a cluster's users see it. The supervisor's network namespace is the router: it hangs
on the nodes' wire already, where it is everybody's default gateway. The host `client-host` reaches nodes, and what the
router has routes for: LoadBalancer IPs and external IPs (`labs.cluster.loadbalancers`). It does not reach pods or
ClusterIPs: nobody outside of a cluster knows the way. Left out: a way on to the machine or the Internet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from labs.cluster import linux
from labs.cluster.options import AddressPlan, without_prefix
from labs.cluster.podspec import PATH
from labs.cluster.runtime.client import Runtime, Started
from labs.cluster.runtime.container import ContainerSpec
from labs.cluster.uplink import Uplink

NAME = "client-host"

log = logging.getLogger(__name__)

Routes = dict[str, tuple[str, ...]]
"""Address -> the nodes' addresses that a router may send to for it."""


class Router:
    """The way between the outside and the nodes. Make it, and call it, in the netlink thread, where the wire is."""

    def __init__(self, plan: AddressPlan) -> None:
        self._plan = plan
        self._ip: Any = IPRoute()
        self._routes: Routes = {}
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # Which of several nodes gets a connection depends on its ports, too, as routers with BGP multipath do it.
        Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").write_text("1")
        if 6 in plan.families:
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
            Path("/proc/sys/net/ipv6/fib_multipath_hash_policy").write_text("1")

    def connect(self, netns: int) -> None:
        """Hang the host whose network namespace is `netns` on the outer network."""
        with linux.network_namespace(netns):
            inside = IPRoute()
        with inside:
            self._ip.link("add", ifname=NAME, kind="veth", peer={"ifname": "eth0", "net_ns_fd": netns})
            inside.link("set", index=1, state="up")
            inside.link("set", index=int(inside.link_lookup(ifname="eth0")[0]), state="up")
        index = int(self._ip.link_lookup(ifname=NAME)[0])
        gateways = self._plan.outside_addresses(1)
        for address in gateways:
            host, _, length = address.partition("/")
            self._ip.addr("add", index=index, address=host, prefixlen=int(length))
        self._ip.link("set", index=index, state="up")
        addresses = self._plan.outside_addresses(2)
        Uplink(netns, tuple(addresses), tuple(without_prefix(gateways))).configure()

    def replace_routes(self, routes: Routes) -> None:
        """Have routes to these addresses and no others, each spread over its nodes."""
        for address, gateways in list(self._routes.items()):
            if routes.get(address) != gateways:
                del self._routes[address]
                self._change("del", address)
        for address, gateways in routes.items():
            if address not in self._routes:
                hops = [{"gateway": gateway, "hops": 0} for gateway in gateways]
                try:
                    self._change("add", address, multipath=hops)
                except NetlinkError as error:  # an external IP that is no host's, such as 127.0.0.1
                    log.warning("no route to %s: %s", address, error)
                    continue
                self._routes[address] = gateways

    def _change(self, command: str, address: str, **options: Any) -> None:
        family, length = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
        self._ip.route(command, dst=f"{address}/{length}", family=family, **options)


def environment() -> dict[str, str]:
    """The environment of the host's processes."""
    return {"PATH": PATH, "HOME": "/root", "HOSTNAME": NAME}


@dataclass
class ClientHost:
    """The host outside: a network namespace and a process in it. `netns`: descriptor of the namespace."""

    machine: Runtime
    netns: int
    addresses: list[str]
    cgroup: str | None
    started: Started | None = None

    async def run(self) -> None:
        """Start its first process, and wait until it ends."""
        if self.cgroup is not None:
            Path(self.cgroup).mkdir(parents=True, exist_ok=True)
        own = "".join(f"{ip}\t{NAME}\n" for ip in self.addresses)
        hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{own}"
        files = {"/etc/hostname": f"{NAME}\n", "/etc/hosts": hosts, "/etc/resolv.conf": ""}
        spec = ContainerSpec(NAME, NAME, "client", hostname=NAME, cgroup=self.cgroup, env=environment(), files=files)
        log_fd = os.open("/run/log/nodes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.started = await self.machine.start(spec, writer, log_fd, self.netns)
        finally:
            for fd in (reader, writer, log_fd):
                os.close(fd)
        await asyncio.shield(self.started.ended)
        self.started = None
