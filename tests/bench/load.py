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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CLIENTS = 8
CONNECTIONS = 64
SERVICE = "10.96.77.77"
_END = "-- the end --"
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


class Client:
    """A shell in a client pod that takes commands as long as the measurement goes on: what starts one, half a second of a
    processor, would else be measured.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """`command`: how to run `sh` in the pod."""
        self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, command: str) -> None:
        """Have the shell run something; `output` must follow."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}; echo {_END}\n")
        self._shell.stdin.flush()

    def output(self) -> str:
        """What it wrote. Raises RuntimeError when the shell has ended."""
        assert self._shell.stdout is not None
        lines = list(iter(self._shell.stdout.readline, f"{_END}\n"))
        if "" in lines:  # readline's word for the end
            raise RuntimeError(f"the shell of a client pod has ended, having said: {lines}")
        return "".join(lines)

    def close(self) -> None:
        """End the shell."""
        self._shell.communicate()


class Load:
    """A running cluster, and the load on it."""

    def __init__(self, name: str, clients: Sequence[Client]) -> None:
        self.name = name
        self._clients = clients

    def run(self, seconds: float) -> Run:
        """Call the Service from every client pod at once."""
        before = self._active_opens()
        connections = CONNECTIONS // len(self._clients)
        outputs = self._all(
            f"wrk -t1 -c{connections} -d{round(seconds)}s -H 'Connection: close' http://{SERVICE}/"
        )
        rates = [float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1)) for output in outputs]  # type: ignore[union-attr]
        return Run(sum(rates), self._active_opens() - before)

    def command(self, where: str, *command: str) -> list[str]:
        """How to run something on a node or in a pod."""
        return [LAB, "exec", "--name", self.name, where, "--", *command]

    def _all(self, command: str) -> list[str]:
        """The same in all client pods at once; what each wrote."""
        for client in self._clients:
            client.begin(command)
        return [client.output() for client in self._clients]

    def _active_opens(self) -> int:
        """TcpActiveOpens (RFC 4022) of the client pods: transitions from CLOSED to SYN-SENT."""
        return sum(map(_active_opens, self._all("cat /proc/net/snmp")))


def _active_opens(snmp: str) -> int:
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("Tcp:"))
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
        pods = [f"bench/{pod['name']}" for pod in status["pods"] if pod["namespace"] == "bench"]
        with contextlib.ExitStack() as stack:
            clients: list[Client] = []
            load = Load(name, clients)
            _tune(load, [node["name"] for node in status["nodes"]], pods)
            for pod in pods:
                if pod.startswith("bench/load-"):
                    clients.append(Client(load.command(pod, "sh")))
                    stack.callback(clients[-1].close)
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
