"""What the commands `status`, `exec` and a second `up` ask a running cluster, over a socket in its state directory.

One JSON object in a line asks, one answers. It stands for nothing in Kubernetes: it tells what the API does not, such
as process ids.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labs.cluster import outside
from labs.cluster.control import FORMAT
from labs.cluster.firstobjects import is_mirror
from labs.cluster.outside import ClientHost
from labs.cluster.podstatus import RunningPod
from labs.cluster.resources import ENDPOINTSLICES, PODS, SERVICES, Object, is_ready, key_of
from labs.cluster.store import Store
from labs.cluster.world import Node, World, node_environment


async def start(world: World, path: Path) -> asyncio.Server:
    """Answer on a Unix socket at `path`, which only root may use."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                request = json.loads(line)
                writer.write(json.dumps(_answer(world, request)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            pass
        finally:
            writer.close()

    draft = path.with_suffix(".new")
    server = await asyncio.start_unix_server(serve, draft)
    draft.chmod(0o600)
    draft.replace(path)
    return server


def _answer(world: World, request: dict[str, Any]) -> dict[str, Any]:
    if request.get("ask") == "ready":
        return {"ready": world.ready, "nodes": len(world.nodes)}
    return describe(world)


def describe(world: World) -> dict[str, Any]:
    """Everything about the cluster. Process ids are those of the supervisor's pid namespace."""
    options = world.options
    return {
        "format": FORMAT,
        "name": options.name,
        "ready": world.ready,
        "options": {
            "nodes": options.nodes,
            "proxy": options.proxy,
            "cni": options.cni,
            "ip_family": options.ip_family,
            "iptables": options.iptables,
        },
        "kubeconfig": str(world.ledger.directory / "kubeconfig"),
        "cgroup": world.ledger.cgroup,
        "notes": world.ledger.notes,
        "unready": [reason.text for reason in world.unready()] if world.ready else ["starting"],
        "nodes": [_node(node) for node in world.nodes],
        "hosts": [_host(world.client_host)] if world.ready else [],
        "pods": [entry for node in world.nodes for pod in node.kubelet.pods.values() for entry in _pod(node, pod)],
        "control_plane": [_mirror(pod) for pod in world.store.list(PODS) if is_mirror(pod)],
        "services": services(world.store),
        "components": [asdict(component) for component in world.components],
    }


def _mirror(pod: Object) -> dict[str, Any]:
    """A pod of the control plane, which runs in the supervisor."""
    return {
        "namespace": pod["metadata"]["namespace"],
        "name": pod["metadata"]["name"],
        "node": pod["spec"]["nodeName"],
        "ready": is_ready(pod),
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.facts.name,
        "addresses": list(node.facts.addresses),
        "pod_cidrs": node.kubelet.pod_cidrs,
        "pid": node.started.pid,
        "netns": os.fstat(node.netns).st_ino,
        "cgroup": None if node.facts.cgroup is None else f"{node.facts.cgroup}/init.scope",
        "env": node_environment(node.facts.name),
    }


def _host(host: ClientHost) -> dict[str, Any]:
    return {
        "name": outside.NAME,
        "addresses": host.addresses,
        "pid": host.started.pid if host.started else None,
        "netns": os.fstat(host.netns).st_ino,
        "cgroup": host.cgroup,
        "env": outside.environment(),
    }


def _pod(node: Node, running: RunningPod) -> list[dict[str, Any]]:
    metadata = running.pod["metadata"]
    container = running.containers[0] if running.containers else None
    netns = node.netns if running.netns is None else running.netns
    return [
        {
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "node": node.facts.name,
            "host_network": bool(running.pod["spec"].get("hostNetwork")),
            "addresses": list(running.addresses),
            "netns": os.fstat(netns).st_ino,
            "ready": bool(running.containers) and all(entry.ready for entry in running.containers),
            "restarts": sum(entry.restarts for entry in running.containers),
            "image": running.pod["spec"]["containers"][0]["image"],
            "pid": container.started.pid if container and container.started else None,
            "cgroup": container.cgroup if container else None,
            "container_id": container.id if container else None,
            "env": container.env if container else {},
        }
    ]


def services(store: Store) -> list[dict[str, Any]]:
    """Every Service with its endpoints, whoever made their EndpointSlices: what those do not tell is ready."""
    slices: dict[tuple[str, str], list[Object]] = {}
    for item in store.list(ENDPOINTSLICES):
        metadata = item["metadata"]
        name = (metadata.get("labels") or {}).get("kubernetes.io/service-name", "")
        slices.setdefault((metadata["namespace"], name), []).append(item)
    return [_service(service, slices.get(key_of(service), ())) for service in store.list(SERVICES)]


def _service(service: Object, slices: Iterable[Object]) -> dict[str, Any]:
    metadata, spec = service["metadata"], service["spec"]
    balanced = (service.get("status") or {}).get("loadBalancer") or {}
    endpoints = []
    for item in slices:
        for endpoint in item.get("endpoints") or ():
            pod = (endpoint.get("targetRef") or {}).get("name")
            ready = (endpoint.get("conditions") or {}).get("ready") is not False
            endpoints.append({"addresses": endpoint["addresses"], "pod": pod, "ready": ready})
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "type": spec["type"],
        "cluster_ips": spec.get("clusterIPs") or [],
        "external_ips": spec.get("externalIPs") or [],
        "load_balancer_ips": [entry["ip"] for entry in balanced.get("ingress") or () if entry.get("ip")],
        "external_traffic_policy": spec.get("externalTrafficPolicy"),
        "internal_traffic_policy": spec.get("internalTrafficPolicy"),
        "session_affinity": spec.get("sessionAffinity"),
        "health_check_node_port": spec.get("healthCheckNodePort"),
        "ports": [
            {
                "name": port.get("name"),
                "protocol": port["protocol"],
                "port": port["port"],
                "target_port": port["targetPort"],
                "node_port": port.get("nodePort"),
            }
            for port in spec.get("ports") or ()
        ],
        "endpoints": endpoints,
    }
