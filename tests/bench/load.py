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
    """A shell in a client pod that takes commands as long as the measurement goes on: to start one costs a processor
    half a second, which would else be measured.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """`command`: how to run `sh` in the pod."""
        self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.begin("true")
        self.output()
        self._inside = _last_descendant(self._shell.pid)

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

    def active_opens(self) -> int:
        """TcpActiveOpens (RFC 4022) of the pod: transitions from CLOSED to SYN-SENT."""
        lines = Path(f"/proc/{self._inside}/net/snmp").read_text().splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
        return int(dict(zip(names, values, strict=True))["ActiveOpens"])

    def close(self) -> None:
        """End the shell."""
        self._shell.communicate()


def _last_descendant(pid: int) -> int:
    """The process in the pod that `k8snet-lab exec` has begun: it may be its child's child."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


class Load:
    """A running cluster, and the load on it."""

    def __init__(self, name: str, clients: Sequence[Client]) -> None:
        self.name = name
        self._clients = clients

    def run(self, seconds: float) -> Run:
        """Call the Service from every client pod at once."""
        before = self.active_opens()
        self._begin(seconds)
        outputs = [client.output() for client in self._clients]
        rates = [float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1)) for output in outputs]  # type: ignore[union-attr]
        return Run(sum(rates), self.active_opens() - before)

    @contextlib.contextmanager
    def going_on(self, seconds: float) -> Iterator[None]:
        """The same load for so long, while something else is done. Waits for its end."""
        self._begin(seconds)
        yield
        for client in self._clients:
            client.output()

    def active_opens(self) -> int:
        """Connections that the client pods have asked for until now."""
        return sum(client.active_opens() for client in self._clients)

    def kubeconfig(self) -> str:
        """The path of the cluster's kubeconfig."""
        return subprocess.run(self.lab("kubeconfig"), capture_output=True, text=True, check=True).stdout.strip()

    def lab(self, action: str, *options: str) -> list[str]:
        """How to run k8snet-lab for this cluster."""
        return [LAB, action, "--name", self.name, *options]

    def command(self, where: str, *command: str) -> list[str]:
        """How to run something on a node or in a pod."""
        return self.lab("exec", where, "--", *command)

    def _begin(self, seconds: float) -> None:
        connections = CONNECTIONS // len(self._clients)
        for client in self._clients:
            client.begin(f"wrk -t1 -c{connections} -d{round(seconds)}s -H 'Connection: close' http://{SERVICE}/")


@contextlib.contextmanager
def cluster(services: int = 10, *, time_wait_sockets: int | None = None) -> Iterator[Load]:
    """A cluster of one's own with `services` Services beside those of every cluster; gone afterwards.

    `time_wait_sockets`: how many each pod has at most; None: as the kernel has it.
    """
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
            _tune(load, [node["name"] for node in status["nodes"]], pods, time_wait_sockets)
            for pod in pods:
                if pod.startswith("bench/load-"):
                    clients.append(Client(load.command(pod, "sh")))
                    stack.callback(clients[-1].close)
            yield load
    finally:
        subprocess.run([LAB, "down", "--name", name], check=False, stdout=subprocess.DEVNULL)


def _tune(load: Load, nodes: list[str], pods: list[str], time_wait_sockets: int | None) -> None:
    """What would otherwise be measured instead: full connection-tracking tables, ports that run out."""
    for node in nodes:
        keep = "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.netfilter.nf_conntrack_tcp_timeout_close=1"
        subprocess.run(load.command(node, "sh", "-c", f"sysctl -qw {keep}"), check=True)
    wanted = ["net.ipv4.ip_local_port_range=1024 65535"]
    if time_wait_sockets is not None:
        wanted.append(f"net.ipv4.tcp_max_tw_buckets={time_wait_sockets}")
    for pod in pods:
        subprocess.run(load.command(pod, "sysctl", "-qw", *wanted), check=True)
