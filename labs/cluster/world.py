"""The whole cluster: puts the components together, in the order in which each can start, and tells when all is ready.

Stands for what `kind create cluster` does with kubeadm: nodes, control plane, network, then the first objects.
Everything here runs in the supervisor's event loop; what runs in pods is started by kubelets like any other pod.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from labs.cluster import (
    daemonsets,
    endpoints,
    endpointslices,
    events,
    firstobjects,
    garbage,
    leases,
    linux,
    loadbalancers,
    manifests,
    namespaces,
    network,
    outside,
    replicasets,
    rollouts,
    scheduler,
    taints,
    vxlan,
)
from labs.cluster.admission import admit
from labs.cluster.api.containers import Place
from labs.cluster.api.server import ApiServer
from labs.cluster.certificates import Authority, TokenIssuer, server_context
from labs.cluster.controller import run_controller
from labs.cluster.ebpfcompiler import Compiler
from labs.cluster.extensions import establishing
from labs.cluster.imagefiles import ImageFiles
from labs.cluster.kubeconfig import render as render_kubeconfig
from labs.cluster.kubelet import Kubelet
from labs.cluster.ledger import Ledger
from labs.cluster.options import ClusterOptions, without_prefix
from labs.cluster.podspec import API_PORT, PATH, NodeFacts
from labs.cluster.readiness import Reason, unready
from labs.cluster.resources import (
    ENDPOINTS,
    ENDPOINTSLICES,
    NODES,
    SERVICES,
    Object,
    key_of,
)
from labs.cluster.runtime.client import Runtime, Started
from labs.cluster.runtime.container import ContainerSpec
from labs.cluster.runtime.service import start_again
from labs.cluster.store import Change, Store
from labs.cluster.uplink import Uplink
from labs.cluster.uplink import keep as keep_uplink
from tracer.errors import K8snetError

READY_SECONDS = 20.0
SERVICE_SECONDS = 0.02  # more for each Service: iptables-nft takes 8.5 ms for the rules of one, on each node
RESTART_SECONDS = 0.5
SWEEP_SECONDS = 30.0
ADMIN = ("kubernetes-admin", "system:masters")
MACHINE = "k8snet-machine"
NODE_KUBECONFIG = "/etc/kubernetes/admin.conf"

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass(slots=True)
class Component:
    """A part of the cluster that runs in the supervisor: how often it failed, and of what the last time."""

    name: str
    running: bool = False
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class Node:
    """A node that runs. `netns`: descriptor of its network namespace; `started`: its first process."""

    number: int
    facts: NodeFacts
    netns: int
    uplink: Uplink
    pods: network.NodeNetwork
    started: Started
    kubelet: Kubelet


class World:
    """A cluster that runs in this process's namespaces."""

    def __init__(
        self,
        options: ClusterOptions,
        ledger: Ledger,
        machine: Runtime,
        progress: Progress,
        compiler: Compiler | None = None,
    ) -> None:
        """`compiler`: who compiles the eBPF datapath, where that serves Services."""
        self.options = options
        self.ledger = ledger
        self.store = Store()
        self.nodes: list[Node] = []
        self.ready = False
        self._machine = machine
        self._progress = progress
        self._compiler = compiler
        self._netlink = network.NetlinkThread()
        self._tokens = TokenIssuer()
        self._authority = Authority()
        self.components: list[Component] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._announcing: set[asyncio.Task[None]] = set()
        self._reconcile_endpoints = endpointslices.reconciler(self.store)

    async def start(self, host_socket: socket.socket) -> None:
        """Bring everything up; returns when the cluster is ready. Raises K8snetError when it does not get there."""
        self._machine.attach()
        self._images = ImageFiles(self._compiler)
        self._progress("nodes")
        wire = await self._netlink.run(network.Wire, self.options.plan)
        self._kubeconfig = self._make_kubeconfig(host_socket)
        for number in range(1, self.options.nodes + 1):
            self.nodes.append(await self._start_node(number, wire))
        router = await self._start_outside()
        self._progress("control plane")
        await self._start_api(host_socket)
        self._create_objects()
        self._run("scheduler", scheduler.WATCHED, scheduler.reconciler(self.store))
        self._run("taints", taints.WATCHED, taints.reconciler(self.store))
        self._run("deployments", rollouts.WATCHED, rollouts.reconciler(self.store, self.options.plan))
        self._run("replicasets", replicasets.WATCHED, replicasets.reconciler(self.store, self.options.plan))
        self._run("daemonsets", daemonsets.WATCHED, daemonsets.reconciler(self.store, self.options.plan))
        self._run("endpointslices", endpointslices.WATCHED, self._reconcile_endpoints)
        establish = establishing.reconciler(self.store)
        self._run("definitions", establishing.WATCHED, establish, establishing.concerns)
        self._run("garbage collector", garbage.WATCHED, garbage.reconciler(self.store), garbage.concerns)
        self._run("endpoints", endpoints.WATCHED, endpoints.reconciler(self.store))
        authority = self._authority.certificate.decode()
        self._run("namespaces", namespaces.WATCHED, namespaces.reconciler(self.store, authority))
        announce = functools.partial(self._announce, router)
        balance = loadbalancers.reconciler(self.store, self.options.plan, announce)
        self._run("load balancers", loadbalancers.WATCHED, balance)
        self._keep("sweep", self._sweep)
        self._keep("leases", functools.partial(leases.keep, self.store))
        self._keep("machine", self._mend_machine)
        self._keep(outside.NAME, self.client_host.run)
        for node in self.nodes:
            self._keep(node.facts.name, functools.partial(self._run_node, node))
            self._keep(f"uplink of {node.facts.name}", functools.partial(keep_uplink, node.uplink, self._netlink.run))
        self._progress("pods")
        await self._wait_until_ready()
        self.ready = True

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def _start_node(self, number: int, wire: network.Wire) -> Node:
        name, plan = f"node{number}", self.options.plan
        addresses = plan.node_addresses(number)
        cgroup = None if self.ledger.cgroup is None else f"{self.ledger.cgroup}/{name}"
        facts = NodeFacts(name, tuple(without_prefix(addresses)), cgroup, self.options)
        netns = await self._machine.make_sandbox(name)
        uplink = Uplink(netns, tuple(addresses), tuple(without_prefix(plan.gateways)))
        await self._netlink.run(wire.connect, name, uplink)
        await self._netlink.run(network.prepare_node, netns, plan)
        mtu = vxlan.mtu(plan.families) if self.options.cni == "vxlan" else None
        pods = await self._netlink.run(network.NodeNetwork, netns, plan.pod_cidrs(number), mtu)
        started, kubelet = await self._boot(facts, netns, pods)
        return Node(number, facts, netns, uplink, pods, started, kubelet)

    async def _start_outside(self) -> outside.Router:
        """Make the network outside of the cluster, with its host."""
        router = await self._netlink.run(outside.Router, self.options.plan)
        netns = await self._machine.make_sandbox(outside.NAME)
        await self._netlink.run(router.connect, netns)
        cgroup = None if self.ledger.cgroup is None else f"{self.ledger.cgroup}/{outside.NAME}"
        addresses = without_prefix(self.options.plan.outside_addresses(2))
        self.client_host = outside.ClientHost(self._machine, netns, addresses, cgroup)
        return router

    def _announce(self, router: outside.Router, routes: outside.Routes) -> None:
        """Give the router its routes, later: the netlink thread does one thing after the other."""

        async def replace() -> None:
            try:
                await self._netlink.run(router.replace_routes, routes)
            except NetlinkError as error:
                log.warning("routes from outside: %s", error)

        task = asyncio.create_task(replace(), name="routes from outside")
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _mend_machine(self) -> None:
        """When the machine's runtime dies, and all nodes with it, start another one; the nodes then boot again."""
        await self._machine.lost.wait()
        log.warning("%s is gone; starting it again", MACHINE)
        self._machine.replace(*await asyncio.to_thread(start_again, MACHINE))

    async def _run_node(self, node: Node) -> None:
        """Run a node's kubelet; when the node's first process ends, and with it all its pods, boot the node again."""
        while True:
            if node.started.ended.done():  # we may have been called again because it could not boot
                node.started, node.kubelet = await self._boot(node.facts, node.netns, node.pods)
                self._report_node(node, ready=True)
            kubelet = asyncio.create_task(node.kubelet.run())
            try:
                await asyncio.wait((kubelet, node.started.ended), return_when=asyncio.FIRST_COMPLETED)
                if not node.started.ended.done():
                    kubelet.result()  # it failed: whoever keeps us says so, and calls us again
            finally:
                kubelet.cancel()
            log.warning("%s is down; booting it again", node.facts.name)
            self._report_node(node, ready=False)
            await node.kubelet.stop()

    async def _boot(self, facts: NodeFacts, netns: int, pods: network.NodeNetwork) -> tuple[Started, Kubelet]:
        """Start a node's first process, which is the runtime of its pods, and make a kubelet for it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cgroup = None if facts.cgroup is None else f"{facts.cgroup}/init.scope"
        if cgroup is not None:
            Path(cgroup).mkdir(parents=True, exist_ok=True)
        spec = ContainerSpec(
            id=facts.name,
            name=facts.name,
            image="node",
            args=[self.options.iptables],
            hostname=facts.name,
            cgroup=cgroup,
            env=node_environment(facts.name),
            keeps_machine=True,
            files={
                "/etc/hostname": f"{facts.name}\n",
                "/etc/hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{self._host_lines()}",
                "/etc/resolv.conf": "",
                NODE_KUBECONFIG: self._kubeconfig,
            },
        )
        log_fd = os.open("/run/log/nodes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        notify_reader, notify_writer = os.pipe2(os.O_CLOEXEC)
        try:
            started = await self._machine.start(spec, notify_writer, log_fd, netns, [theirs.fileno()])
        finally:
            os.close(notify_writer)
            os.close(notify_reader)
            os.close(log_fd)
            theirs.close()
        runtime = Runtime(ours, started.pidfd)
        runtime.attach()
        return started, Kubelet(facts, self.store, runtime, self._images, self._netlink, pods, self._tokens)

    def _report_node(self, node: Node, *, ready: bool) -> None:
        """Write whether a node is ready into its object."""
        item = self.store.get(NODES, "", node.facts.name)
        conditions = firstobjects.node_conditions(ready=ready)
        self.store.update(NODES, {**item, "status": {**item["status"], "conditions": conditions}})

    def _host_lines(self) -> str:
        plan = self.options.plan
        nodes = range(1, self.options.nodes + 1)
        return "".join(
            f"{ip}\tnode{number}\n" for number in nodes for ip in without_prefix(plan.node_addresses(number))
        )

    # --- control plane ------------------------------------------------------------------------------------------------

    def _make_kubeconfig(self, host_socket: socket.socket) -> str:
        """Write the kubeconfig for the machine; gives the one for the nodes."""
        admin = self._authority.client(*ADMIN)
        port = host_socket.getsockname()[1]
        path = self.ledger.directory / "kubeconfig"
        draft = path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(
                render_kubeconfig(self.options.name, f"https://127.0.0.1:{port}", self._authority.certificate, admin)
            )
        draft.replace(path)
        inside = without_prefix(self.options.plan.node_addresses(1))[0]
        return render_kubeconfig(self.options.name, f"https://{inside}:{API_PORT}", self._authority.certificate, admin)

    async def _start_api(self, host_socket: socket.socket) -> None:
        """Serve the API on loopback of the machine, and in node1."""
        addresses = [*self.nodes[0].facts.addresses, "127.0.0.1", "10.96.0.1"]
        names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "node1",
        ]
        context = server_context(self._authority, self._authority.server("kube-apiserver", [*names, *addresses]))
        with linux.network_namespace(self.nodes[0].netns):
            inside = socket.create_server(("::", API_PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        server = ApiServer(self.store, self._tokens, context, self.options.plan, self._locate, self.nodes[0].netns)
        await server.start([host_socket, inside])

    def _locate(self, pod: Object, name: str) -> Place | None:
        """The running container of a pod, for `kubectl exec`, `attach` and `logs -f`."""
        for node in self.nodes:
            running = node.kubelet.pods.get(key_of(pod))
            for container in (*running.init, *running.containers) if running is not None else ():
                if container.name == name and container.started is not None and container.io is not None:
                    facts = (container.cgroup, container.env, container.io, container.directory, container.user)
                    return Place(container.id, container.started, *facts)
        return None

    def _create_objects(self) -> None:
        """The first objects: what the components need, the nodes, the workload, what the user asked for."""
        for node in self.nodes:
            self.store.create(NODES, firstobjects.node(node.number, node.facts))
        furnish = namespaces.reconciler(self.store, self._authority.certificate.decode())
        for text in [*manifests.starting_texts(self.options.proxy), *self.options.manifests]:
            for item in manifests.parse(text):
                self._create(item)
                if item["kind"] == "Namespace":
                    furnish()  # pods need the account that comes with their namespace
        for item in firstobjects.control_plane_pods(self.nodes[0].facts):
            self._create(item)
        service, address = self.store.get(SERVICES, "default", "kubernetes"), self.nodes[0].facts.addresses[0]
        self.store.create(ENDPOINTSLICES, firstobjects.api_slice(service, address))
        self.store.create(ENDPOINTS, firstobjects.api_endpoints(service, address))

    def _create(self, item: Object) -> None:
        try:
            admit(self.store, self.options.plan, firstobjects.typed(self.store.kinds, item))
        except K8snetError as error:
            name = (item.get("metadata") or {}).get("name")
            raise K8snetError(f"{item.get('kind')} {name!r}: {error.message}") from error

    # --- components ---------------------------------------------------------------------------------------------------

    def _run(
        self,
        name: str,
        watched: tuple[Any, ...],
        reconcile: Callable[[], float | None],
        concerns: Callable[[Change], bool] = lambda _: True,
    ) -> None:
        self._keep(name, lambda: run_controller(self.store, watched, reconcile, concerns))

    async def _sweep(self) -> None:
        """What is done from time to time, whatever happens."""
        collect = garbage.reconciler(self.store)
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            events.forget_old(self.store)
            collect()

    def _keep(self, name: str, component: Callable[[], Awaitable[None]]) -> None:
        """Run a component, and again when it fails: its state is all in the store."""
        health = Component(name)

        async def keep() -> None:
            while True:
                health.running = True
                try:
                    await component()
                except Exception as error:
                    health.failures, health.error = health.failures + 1, str(error) or type(error).__name__
                    log.exception("%s failed; starting it again", name)
                health.running = False
                await asyncio.sleep(RESTART_SECONDS)

        self.components.append(health)
        self._tasks.append(asyncio.create_task(keep(), name=name))

    # --- ready --------------------------------------------------------------------------------------------------------

    async def _wait_until_ready(self) -> None:
        """Wait until every pod serves and every node's kernel has the rules for it."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + READY_SECONDS + SERVICE_SECONDS * len(self.store.list(SERVICES))
        while True:
            began = clock()
            self._reconcile_endpoints()  # a pod may have become ready just now, and the controller may not have run yet
            reasons = self.unready()
            if not reasons:
                return
            fatal = [reason for reason in reasons if reason.fatal]
            if fatal or clock() > deadline:
                texts = "; ".join(reason.text for reason in (fatal or reasons)[:5])
                raise K8snetError(f"the cluster did not become ready: {texts}")
            # With thousands of Services a look takes long, and everybody else here waits for it.
            await asyncio.sleep(max(0.005, 3 * (clock() - began)))

    def unready(self) -> list[Reason]:
        """What keeps the cluster from being ready, now."""
        down = [Reason(f"{node.facts.name} is down") for node in self.nodes if not node.started.is_alive]
        return down + unready(self.store, [(node.facts.name, node.kubelet) for node in self.nodes])


def node_environment(name: str) -> dict[str, str]:
    """The environment of a node's processes; kubectl works there, as it does on kind's nodes."""
    return {"PATH": PATH, "HOME": "/root", "HOSTNAME": name, "KUBECONFIG": NODE_KUBECONFIG}
