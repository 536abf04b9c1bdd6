"""From a Pod object to what the runtime starts: environment, files, cgroup, as kubelet works them out.

Stands for the parts of pkg/kubelet that compute rather than act: kubelet_pods.go (hosts file; the environment is in
podenv.py), network/dns/dns.go (resolv.conf), cm/pod_container_manager_linux.go (cgroup names with the cgroupfs driver).
Volumes are in podvolumes.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from labs.cluster import podenv
from labs.cluster.images import find
from labs.cluster.options import ClusterOptions, without_prefix
from labs.cluster.podenv import Sources
from labs.cluster.resources import Object
from labs.cluster.runtime.container import ContainerSpec

DOMAIN = "cluster.local"
DNS_IP = "10.96.0.10"
API_PORT = 6443
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a kubelet knows of its node. `addresses`: without prefix length. `cgroup`: the node's, or None."""

    name: str
    addresses: tuple[str, ...]
    cgroup: str | None
    options: ClusterOptions

    @property
    def api_server(self) -> str:
        """Where components on the node's network reach the API: at the control plane's address, without any Service."""
        return f"https://{without_prefix(self.options.plan.node_addresses(1))[0]}:{API_PORT}"


def pod_cgroup(node_cgroup: str | None, pod: Object) -> str | None:
    """The pod's cgroup: kubepods[/QOS]/podUID below the node's."""
    if node_cgroup is None:
        return None
    quality = pod["status"].get("qosClass", "BestEffort")
    middle = "" if quality == "Guaranteed" else f"/{quality.lower()}"
    return f"{node_cgroup}/kubepods{middle}/pod{pod['metadata']['uid']}"


def container_spec(
    pod: Object,
    container: Object,
    node: NodeFacts,
    addresses: tuple[str, ...],
    sources: Sources,
) -> ContainerSpec:
    """What to start for one container of a pod that has `addresses`, without its mounts.

    Raises UnknownImage and MissingConfig.
    """
    host_network = bool(pod["spec"].get("hostNetwork"))
    hostname = node.name if host_network else pod_hostname(pod)
    image = find(container["image"])
    ports = container.get("ports") or []
    cgroup = pod_cgroup(node.cgroup, pod)
    identifier = os.urandom(32).hex()
    env = environment(pod, container, node, addresses, hostname, sources)
    if container.get("tty"):
        env = {"TERM": "xterm", **env}  # as containerd does
    command, args = container.get("command"), container.get("args") or ()
    if command is None and args and not image.entrypoint:
        command, args = args, ()
    return ContainerSpec(
        id=identifier,
        name=container["name"],
        image=container["image"],
        command=None if command is None else [podenv.expand(word, env) for word in command],
        args=[podenv.expand(word, env) for word in args],
        env=env,
        hostname=hostname,
        host_pid=bool(pod["spec"].get("hostPID")),
        cgroup=None if cgroup is None else f"{cgroup}/{identifier}",
        files={
            "/etc/hostname": f"{hostname}\n",
            "/etc/hosts": hosts_file(pod, hostname, addresses),
            "/etc/resolv.conf": resolv_conf(pod, node),
        },
        directory=container.get("workingDir") or "/",
        wait_for_ports=[]
        if image.announces or command is not None  # nobody promised that a command listens on its ports
        else [port["containerPort"] for port in ports if port.get("protocol", "TCP") == "TCP"],
        tty=bool(container.get("tty")),
        user=user_of(pod, container),
        facts={
            "pod": pod["metadata"]["name"],
            "namespace": pod["metadata"]["namespace"],
            "node": node.name,
            "node_cgroup": node.cgroup,
            "addresses": list(addresses),
            "ports": ports,
            "families": list(node.options.plan.families),
            "pod_networks": node.options.plan.pod_networks,
            "proxy": node.options.proxy,
            "cni": node.options.cni,
            "iptables": node.options.iptables,
            "api_server": node.api_server,
        },
    )


def user_of(pod: Object, container: Object) -> list[int]:
    """User, group and further groups of a container's commands, by its and its pod's securityContext; [] for root."""
    whole, own = (item.get("securityContext") or {} for item in (pod["spec"], container))
    user, group = (own.get(name, whole.get(name)) for name in ("runAsUser", "runAsGroup"))
    further = [*(whole.get("supplementalGroups") or ()), *([whole["fsGroup"]] if "fsGroup" in whole else [])]
    return [user or 0, group or 0, *further] if user or group or further else []


def pod_hostname(pod: Object) -> str:
    """The pod's name, or what its spec says, cut to what a host name may have."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")


def resolv_conf(pod: Object, node: NodeFacts) -> str:
    """The resolver's configuration for dnsPolicy ClusterFirst (dns.go, getPodDNS); the nameserver is kube-dns.

    A pod on the node's network with that policy gets the node's configuration, which in this cluster names no server.
    """
    policy = pod["spec"].get("dnsPolicy", "ClusterFirst")
    spec = pod["spec"].get("dnsConfig") or {}
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str | None] = {}
    if policy == "ClusterFirstWithHostNet" or (policy == "ClusterFirst" and not pod["spec"].get("hostNetwork")):
        servers = [DNS_IP]
        searches = [f"{pod['metadata']['namespace']}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN]
        options = {"ndots": "5"}
    servers += spec.get("nameservers") or ()
    searches += spec.get("searches") or ()
    options.update((entry["name"], entry.get("value")) for entry in spec.get("options") or ())
    words = [f"{name}:{value}" if value else name for name, value in options.items()]
    lines = [f"search {' '.join(dict.fromkeys(searches))}"] if searches else []
    lines += [f"nameserver {server}" for server in dict.fromkeys(servers)]
    lines += [f"options {' '.join(words)}"] if words else []
    return "".join(f"{line}\n" for line in lines)


def hosts_file(pod: Object, hostname: str, addresses: tuple[str, ...]) -> str:
    """/etc/hosts as kubelet writes it (kubelet_pods.go, managedHostsFileContent)."""
    lines = ["# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += ["fe00::0\tip6-localnet", "fe00::0\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters"]
    subdomain = pod["spec"].get("subdomain")
    names = [hostname]
    if subdomain:
        names.insert(0, f"{hostname}.{subdomain}.{pod['metadata']['namespace']}.svc.{DOMAIN}")
    words = "\t".join(names)
    lines += [f"{address}\t{words}" for address in addresses]
    for alias in pod["spec"].get("hostAliases") or ():
        lines.append("\t".join([alias["ip"], *alias["hostnames"]]))
    return "\n".join([*lines, ""])


def environment(
    pod: Object, container: Object, node: NodeFacts, addresses: tuple[str, ...], hostname: str, sources: Sources
) -> dict[str, str]:
    """A container's environment: the image's, then the API's. Raises MissingConfig."""
    fields = node_fields(node, addresses)
    home = "/" if any(user_of(pod, container)[:1]) else "/root"
    return {"PATH": PATH, "HOME": home, "HOSTNAME": hostname, **podenv.make(pod, container, sources, fields)}


def node_fields(node: NodeFacts, addresses: tuple[str, ...]) -> dict[str, str]:
    """The fields of the downward API that are not in the pod itself."""
    return {
        "status.podIP": addresses[0] if addresses else "",
        "status.podIPs": ",".join(addresses),
        "status.hostIP": node.addresses[0],
        "status.hostIPs": ",".join(node.addresses),
        "spec.nodeName": node.name,
    }
