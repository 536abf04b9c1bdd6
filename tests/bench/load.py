"""The load of `scripts/bench overhead`: a cluster in miniature whose client pods call nginx through a ClusterIP.

What belongs here: the cluster, one run of the load, counting what the kernel says was connected. What does not: the
tools that watch.

Each client pod has an address of its own and its whole port range, so that a run seldom uses a tuple again that an
earlier one left in TIME_WAIT: taking those over costs the kernel more than a connection does.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLIENTS = 8
CONNECTIONS = 64
SERVICE = "10.96.77.77"
LAB = str(Path(__file__).parents[2] / ".venv" / "bin" / "k8snet-lab")

_MANIFEST = """\
apiVersion: v1
kind: Namespace
metadata: {{name: bench}}
---
apiVersion: v1
kind: Service
metadata: {{name: nginx, namespace: bench}}
spec:
  clusterIP: {service}
  selector: {{app: nginx}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: nginx, namespace: bench}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: nginx}}}}
  template:
    metadata: {{labels: {{app: nginx}}}}
    spec:
      containers: [{{name: nginx, image: nginx, ports: [{{containerPort: 8080}}]}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: load, namespace: bench}}
spec:
  replicas: {clients}
  selector: {{matchLabels: {{app: load}}}}
  template:
    metadata: {{labels: {{app: load}}}}
    spec:
      containers: [{{name: load, image: client}}]
"""
_FILLER = """\
---
apiVersion: v1
kind: Service
metadata: {{name: other-{number}, namespace: bench}}
spec:
  selector: {{app: nginx}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"""


@dataclass(frozen=True)
class Run:
    """One run of the load: requests answered per second, and connections that the client pods asked the kernel for."""

    requests_per_second: float
    connections: int


class Load:
    """A running cluster, and the load on it."""

    def __init__(self, name: str, clients: list[str]) -> None:
        self.name = name
        self.clients = clients

    def run(self, seconds: float) -> Run:
        """Call the Service from every client pod at once."""
        before = self._active_opens()
        command = (
            f"wrk -t1 -c{CONNECTIONS // len(self.clients)} -d{round(seconds)}s -H 'Connection: close' http://{SERVICE}/"
        )
        processes = [
            subprocess.Popen(self.command(pod, "sh", "-c", command), stdout=subprocess.PIPE, text=True)
            for pod in self.clients
        ]
        outputs = [process.communicate()[0] for process in processes]
        rates = [float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1)) for output in outputs]  # type: ignore[union-attr]
        return Run(sum(rates), self._active_opens() - before)

    def command(self, where: str, *command: str) -> list[str]:
        """How to run something on a node or in a pod."""
        return [LAB, "exec", "--name", self.name, where, "--", *command]

    def _active_opens(self) -> int:
        """TcpActiveOpens (RFC 4022) of the client pods: transitions from CLOSED to SYN-SENT."""
        return sum(self._snmp(pod) for pod in self.clients)

    def _snmp(self, pod: str) -> int:
        output = subprocess.run(
            self.command(pod, "cat", "/proc/net/snmp"), capture_output=True, text=True, check=True
        ).stdout
        names, values = (line.split()[1:] for line in output.splitlines() if line.startswith("Tcp:"))
        return int(dict(zip(names, values, strict=True))["ActiveOpens"])


@contextlib.contextmanager
def cluster(services: int = 10) -> Iterator[Load]:
    """A cluster of one's own with `services` Services beside those of every cluster; gone afterwards."""
    name = f"bench{secrets.token_hex(3)}"
    manifest = _MANIFEST.format(service=SERVICE, clients=CLIENTS) + "".join(
        _FILLER.format(number=n) for n in range(services)
    )
    try:
        subprocess.run(
            [LAB, "up", "--name", name, "-f", "-"], input=manifest, text=True, check=True, stdout=subprocess.DEVNULL
        )
        status = json.loads(
            subprocess.run([LAB, "status", "--name", name, "-o", "json"], capture_output=True, check=True).stdout
        )
        pods = [pod for pod in status["pods"] if pod["namespace"] == "bench"]
        load = Load(name, [f"bench/{pod['name']}" for pod in pods if pod["name"].startswith("load-")])
        _tune(load, [node["name"] for node in status["nodes"]], [f"bench/{pod['name']}" for pod in pods])
        yield load
    finally:
        subprocess.run([LAB, "down", "--name", name], check=False, stdout=subprocess.DEVNULL)


def _tune(load: Load, nodes: list[str], pods: list[str]) -> None:
    """What would otherwise be measured instead: full connection-tracking tables, ports that run out."""
    for node in nodes:
        keep = "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.netfilter.nf_conntrack_tcp_timeout_close=1"
        subprocess.run(load.command(node, "sh", "-c", f"sysctl -qw {keep}"), check=True)
    for pod in pods:
        subprocess.run(load.command(pod, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"), check=True)
