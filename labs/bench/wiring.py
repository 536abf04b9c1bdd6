"""A node with two pods, in the worker's own network namespaces: one asks, one has the addresses of all endpoints.

    client pod 10.244.0.2 and 10.244.8.0/24 ──veth── node, where the datapath is ──veth── server pod 10.128.0.0/10

Stands for one node of the miniature cluster, plugged together by the same code (`labs.cluster.network`), with the same
masquerading (`labs.cluster.kindnet`), and so with connection tracking in every mode, as there. Left out: other nodes;
all endpoints are in one pod, which costs a packet what it costs with a pod for each.

What belongs here: links, addresses, routes, sysctls. What does not: Services (`datapaths`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute

from labs.bench import objects
from labs.cluster import linux, uplink
from labs.cluster.kindnet import ensure_masquerading
from labs.cluster.netfilter import Iptables
from labs.cluster.network import NodeNetwork

LOCAL = {"type": "local", "table": 255, "scope": 254}  # RTN_LOCAL, RT_TABLE_LOCAL, RT_SCOPE_HOST


class Wiring:
    """The three network namespaces. Make it in the node's, in a process without threads that need another one.

    `iptables`: the variant in which kindnet's rules are written.
    """

    def __init__(self, iptables: str) -> None:
        self._node = _current()
        self._client = self._new()
        self._server = self._new()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        network = NodeNetwork(self._node, [objects.CLIENT_NETWORK])
        client, server = network.attach(self._client), network.attach(self._server)
        with IPRoute() as node:
            node.link("set", index=1, state="up")
            node.link("add", ifname=uplink.NAME, kind="veth", peer="wire")  # leads nowhere
            index = node.link_lookup(ifname=uplink.NAME)[0]
            node.addr("add", index=index, address=objects.NODE_IP, prefixlen=16)
            node.link("set", index=index, state="up")
            node.link("set", index=node.link_lookup(ifname="wire")[0], state="up")
            for destination, pod in ((objects.CLIENT_SOURCES, client), (objects.ENDPOINT_NETWORK, server)):
                way = node.link_lookup(ifname=pod.link)[0]
                node.route("add", dst=destination, gateway=pod.addresses[0], oif=way)
        self._own(self._client, objects.CLIENT_SOURCES)
        self._own(self._server, objects.ENDPOINT_NETWORK)
        with self.server():
            Path("/proc/sys/net/core/somaxconn").write_text("65535")
        asyncio.run(ensure_masquerading(Iptables(4, iptables), [objects.POD_NETWORK]))
        # Connections of one measurement shall not lie in the way of the next.
        for name in ("time_wait", "close"):
            Path(f"/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}").write_text("1")

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        """Run the body in the client pod's network namespace."""
        with linux.network_namespace(self._client):
            yield

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        """Run the body in the server pod's."""
        with linux.network_namespace(self._server):
            yield

    def listen(self) -> socket.socket:
        """A socket that takes connections to every endpoint, and does not block."""
        with self.server():
            listener = socket.create_server(("0.0.0.0", objects.PORT), backlog=65535)
        listener.setblocking(False)
        return listener

    def _new(self) -> int:
        linux.unshare(linux.CLONE_NEWNET)
        made = _current()
        linux.setns(self._node, linux.CLONE_NEWNET)
        return made

    def _own(self, netns: int, addresses: str) -> None:
        """Have a pod take all of `addresses` for its own."""
        with linux.network_namespace(netns), IPRoute() as pod:
            pod.route("add", dst=addresses, oif=1, **LOCAL)


def _current() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
