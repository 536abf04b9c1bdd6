"""What the miniature cluster takes: to start and end, to scale, in memory, and its kube-proxy with many Services.

What belongs here: driving the command and kubectl, timing, the table. What does not: the cluster; how to find its
processes (`tests.labs.lab`).

Each figure is told beside what it should be. Runs are repeated and medians count, with the range beside them, since
other work on the machine disturbs them.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labs.cluster.kubeproxy import Proxier
from labs.cluster.proxy.node import LocalNode
from labs.cluster.proxy.settings import Settings
from labs.cluster.proxymodes import backend
from tests.labs.lab import Lab, Trace
from tests.tracer.networks import namespaces
from tracer.netns import run_in

Say = Callable[[str], None]
Key = tuple[str, str]

NODES = 3
MANY_PODS = 50
MOST_PODS = 200
MODES = {"legacy": ("iptables", "legacy"), "nft": ("iptables", "nft"), "nftables": ("nftables", "")}
KUBE_PROXY_SECONDS = 1.25  # kube-proxy's own full sync of 110,000 rules through iptables-legacy


@dataclass
class Result:
    """One figure: of each run, with the unit; `target` is what it should be at most, None where nothing is promised."""

    what: str
    values: list[float]
    unit: str
    target: float | None = None

    @property
    def median(self) -> float:
        """The one that counts."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether it is what it should be; None where nothing is promised."""
        return None if self.target is None else self.median <= self.target

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {**asdict(self), "median": self.median, "met": self.met}


def measure_cluster(runs: int, say: Say) -> list[Result]:
    """Start and end a cluster `runs` times; scale in the last one."""
    up = Result(f"up: {NODES} nodes, 6 pods, all ready", [], "s", 3.0)
    down = Result("down", [], "s", 1.0)
    fifty = Result(f"kubectl scale to {MANY_PODS} pods: ready, and in every node's rules", [], "s", 5.0)
    most = Result(f"to {MOST_PODS} pods", [], "s")
    memory = Result(f"memory of all that, with {MOST_PODS} pods", [], "MB", 4096.0)
    for run in range(runs):
        say(f"cluster {run + 1} of {runs}")
        cluster = Lab(("--nodes", str(NODES)))
        up.values.append(_seconds(cluster.__enter__))
        try:
            fifty.values.append(_seconds(partial(_scale, cluster, MANY_PODS)))
            if run == runs - 1:
                most.values.append(_seconds(partial(_scale, cluster, MOST_PODS)))
                memory.values.append(_megabytes(cluster))
            _scale(cluster, 3)
        finally:
            down.values.append(_seconds(cluster.__exit__))
    return [up, down, fifty, most, memory]


def _seconds(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _scale(cluster: Lab, replicas: int) -> None:
    """Scale fastapi/lets-ship-it, and wait until all its pods are ready and every node has a rule for each."""
    kubectl = [shutil.which("kubectl") or "kubectl", "--kubeconfig", cluster.kubeconfig(), "-n", "fastapi"]
    deployment = "deployment/lets-ship-it"
    for command in (["scale", deployment, f"--replicas={replicas}"], ["rollout", "status", deployment, "--timeout=2m"]):
        subprocess.run([*kubectl, *command], check=True, capture_output=True)
    for number in range(1, NODES + 1):
        while _endpoints_in_rules(cluster, f"node{number}") != replicas:
            time.sleep(0.05)


def _endpoints_in_rules(cluster: Lab, node: str) -> int:
    """How many endpoints of the Service the node's rules choose from."""
    saved = cluster.exec(node, "iptables-save", "-t", "nat").stdout.splitlines()
    return sum("--to-destination" in line and '"fastapi/lets-ship-it:http"' in line for line in saved)


def _megabytes(cluster: Lab) -> float:
    """The proportional set size of all processes of a cluster: what is shared counts once."""
    kilobytes = 0
    for pid in Trace.of(cluster).processes:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def measure_proxy(services: int, runs: int, modes: Sequence[str], say: Say) -> list[Result]:
    """kube-proxy alone: a full sync of `services` Services of 3 endpoints, then one endpoint replaced `runs` times."""
    results = []
    for mode in modes:
        say(f"{services:,} Services, {mode}")
        target = 2.5 * KUBE_PROXY_SECONDS if mode == "legacy" else None
        full = Result(f"full sync of {services:,} Services of 3 endpoints, {mode}", [], "s", target)
        change = Result(f"one endpoint of {services:,} Services, in the kernel, {mode}", [], "s", 0.5)
        with namespaces(1) as (namespace,):
            sync = _Sync(services, mode, namespace.path)
            full.values.append(_seconds(sync))
            gc.freeze()  # as kube-proxy's main does after its first sync
            for run in range(runs):
                sync.replace_endpoint(run)
                change.values.append(_seconds(sync))
        results += [full, change]
    return results


class _Sync:
    """Objects of many Services, and the kube-proxy that syncs them when called."""

    def __init__(self, services: int, mode: str, netns: str) -> None:
        self._netns = netns
        self._proxier = Proxier("node1", backend(MODES[mode][0], 4, MODES[mode][1]))
        self._settings = Settings(node=LocalNode("node1", "172.18.0.2"), family=4, cluster_cidr="10.244.0.0/16")
        self._services = {("default", f"s{number}"): _service(number) for number in range(services)}
        self._slices = {("default", f"s{number}-x"): _slice(number, (1, 2, 3)) for number in range(services)}

    def __call__(self) -> None:
        run_in(self._netns, lambda: asyncio.run(self._proxier.sync(self._services, self._slices, self._settings)))

    def replace_endpoint(self, run: int) -> None:
        """Give the Service in the middle another third endpoint."""
        number = len(self._services) // 2
        self._slices["default", f"s{number}-x"] = _slice(number, (1, 2, 4 + run))


def _service(number: int) -> dict[str, Any]:
    ip = f"10.96.{number // 250}.{number % 250 + 1}"
    port = {"name": "", "protocol": "TCP", "port": 80, "targetPort": 80}
    spec = {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [port]}
    return {"metadata": {"namespace": "default", "name": f"s{number}"}, "spec": spec}


def _slice(number: int, endpoints: Sequence[int]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": f"s{number}"}
    addresses = [f"10.{100 + number // 250}.{number % 250}.{endpoint}" for endpoint in endpoints]
    return {
        "metadata": {"namespace": "default", "name": f"s{number}-x", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": 80}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}, "nodeName": "node1"} for ip in addresses],
    }


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | median | range | should be at most | is it |", "|---|---|---|---|---|"]
    for result in results:
        spread = f"{min(result.values):.2f} to {max(result.values):.2f}" if len(result.values) > 1 else ""
        target = f"{result.target:g} {result.unit}" if result.target is not None else ""
        met = "" if result.met is None else "yes" if result.met else "no"
        lines.append(f"| {result.what} | {result.median:.2f} {result.unit} | {spread} | {target} | {met} |")
    return "\n".join(lines)
