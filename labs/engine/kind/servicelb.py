"""Services on a kind cluster without kube-proxy: our own eBPF datapath, as a DaemonSet (service-lb.yaml beside this).

It belongs to the cluster, not to a lesson: without it no Service works there, so it stays until the cluster is deleted,
and everything that it has put into the nodes' kernel goes with their containers.

What belongs here: fitting the manifest to a cluster, and waiting. What does not: the datapath
(`labs.cluster.ebpfnode`), the programs in the nodes (`install`).
"""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

import yaml

from labs.engine.kind.world import KindCluster
from labs.engine.world import Ran
from tracer.errors import K8snetError

MANIFEST = Path(__file__).with_name("service-lb.yaml")
SECONDS = 300.0  # an image may have to be pulled; compiling takes some seconds on each node
DNS_SECONDS = 120.0
STARTED = "k8snet/started"


def deploy(world: KindCluster) -> None:
    """Have it, its pods started anew: they write the maps anew, whatever somebody did to them. Raises K8snetError."""
    _must(world.apply(manifest(world)), "kubectl apply service-lb.yaml")
    _wait(world, "daemonset/service-lb", SECONDS)
    _wait(world, "deployment/coredns", DNS_SECONDS)  # it had no way to the API, and so no names, before


def manifest(world: KindCluster) -> str:
    """The manifest for this cluster. Raises K8snetError."""
    configuration = cluster_configuration(world)
    values = {"API_SERVER": _api_server(configuration), "IP_FAMILY": _ip_family(configuration)}
    documents = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    template = documents[-1]["spec"]["template"]
    template["metadata"]["annotations"] = {STARTED: str(time.time_ns())}
    for entry in template["spec"]["containers"][0]["env"]:
        if entry["name"] in values:
            entry["value"] = values[entry["name"]]
    return yaml.safe_dump_all(documents, sort_keys=False)


def cluster_configuration(world: KindCluster) -> dict[str, Any]:
    """What kubeadm made the cluster from, which it leaves there. Raises K8snetError."""
    found = world.get("configmap", "kubeadm-config", "kube-system")
    if found is None:
        raise K8snetError("there is no configmap kube-system/kubeadm-config: kubeadm, and so kind, leaves one")
    try:
        configuration: dict[str, Any] = yaml.safe_load(found["data"]["ClusterConfiguration"])
        configuration["networking"]["serviceSubnet"], configuration["controlPlaneEndpoint"]
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise K8snetError(f"configmap kube-system/kubeadm-config is not kubeadm's: {error!r}") from error
    return configuration


def _api_server(configuration: dict[str, Any]) -> str:
    """The control plane by its container's name, which Docker's DNS knows on every node, and which is in its
    certificate; of several control planes, what balances them."""
    return f"https://{configuration['controlPlaneEndpoint']}"


def _ip_family(configuration: dict[str, Any]) -> str:
    networks = configuration["networking"]["serviceSubnet"].split(",")
    families = {ipaddress.ip_network(network).version for network in networks}
    return "dual" if len(families) > 1 else "ipv4"


def _wait(world: KindCluster, what: str, seconds: float) -> None:
    status = ("rollout", "status", what, f"--timeout={seconds:.0f}s")
    _must(world.kubectl("-n", "kube-system", *status, seconds=seconds + 10), what)


def _must(done: Ran, what: str) -> None:
    if done.code != 0:
        reason = done.err.strip() or done.out.strip() or f"exit code {done.code}"
        raise K8snetError(f"{what}: {reason}", hint="kubectl -n kube-system logs daemonset/service-lb")
