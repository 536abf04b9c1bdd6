"""The kind cluster that a lesson needs: kind's configuration, and running kind.

What belongs here: from a lesson's requirements to kind's words. What does not: the lesson's objects (`prepare`), and
printing.
"""

from __future__ import annotations

import shutil
import subprocess

import yaml

from labs.cluster.options import AddressPlan
from labs.engine.kind.world import KindCluster
from tracer.errors import K8snetError, UsageError

API = "kind.x-k8s.io/v1alpha4"
PROXIES = ("iptables", "nftables", "none")
IP_FAMILIES = ("ipv4", "dual")
MAX_NODES = 16
GET_KIND = "https://kind.sigs.k8s.io/docs/user/quick-start/#installation"


def configuration(nodes: int = 2, proxy: str = "iptables", ip_family: str = "ipv4") -> str:
    """The text for `kind create cluster --config`: addresses are those of the miniature cluster. Raises UsageError."""
    if not 1 <= nodes <= MAX_NODES:
        raise UsageError(f"a cluster has 1 to {MAX_NODES} nodes, not {nodes}")
    plan = AddressPlan((4, 6) if ip_family == "dual" else (4,))
    document = {
        "kind": "Cluster",
        "apiVersion": API,
        "networking": {
            "ipFamily": ip_family,
            "kubeProxyMode": proxy,
            "disableDefaultCNI": False,
            "podSubnet": ",".join(plan.pod_networks),
            "serviceSubnet": ",".join(plan.service_networks),
        },
        "nodes": [{"role": "control-plane"}, *({"role": "worker"} for _ in range(nodes - 1))],
    }
    return yaml.safe_dump(document, sort_keys=False)


def kube_proxy(proxy: str) -> str:
    """The mode of kube-proxy that a lesson's cluster has; where Services are served otherwise, there is none."""
    return "none" if proxy == "ebpf" else proxy


def command(name: str) -> list[str]:
    """What makes the cluster, given the configuration on standard input."""
    return ["kind", "create", "cluster", "--name", name, "--config", "-"]


def is_installed() -> bool:
    """Whether there is a kind to run."""
    return shutil.which("kind") is not None


def run(world: KindCluster, text: str) -> None:
    """Have kind make the cluster; it speaks for itself meanwhile. Raises K8snetError."""
    done = subprocess.run(command(world.name), input=text.encode(), check=False)
    if done.returncode != 0:
        raise K8snetError(
            f"kind create cluster: exit code {done.returncode}, see above",
            hint=f"kind delete cluster --name {world.name}, and try again",
        )
