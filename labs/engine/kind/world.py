"""A kind cluster as checks, facts and faults see it: kubectl for the API and pods, `docker exec` for nodes.

Lessons call the nodes node1, node2, …: here these are the containers NAME-control-plane, NAME-worker, … in this order;
their own names work, too.

What belongs here: reaching the cluster. What does not: making it (`create`), and putting things into it (`prepare`,
`install`).
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from labs.engine.kind import images
from labs.engine.progress import Home
from labs.engine.world import PROBE_RATE, RUN_SECONDS, Blocked, Ran, kubectl_get, ran
from tracer.errors import K8snetError, UsageError

# pkg/cluster/internal/providers/docker/constants.go of kind
CLUSTER_LABEL = "io.x-k8s.kind.cluster"
ROLE_LABEL = "io.x-k8s.kind.role"
ROLES = ("control-plane", "worker")  # others, such as a load balancer before control planes, are no nodes
ADMIN_KUBECONFIG = "/etc/kubernetes/admin.conf"  # kubeadm's, on the control plane
NODE_PYTHON = "/opt/k8snet/venv/bin/python"  # install.sh puts it there
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CLIENT_HOST = "client-host"  # outside of the cluster, as lessons call it
NOT_THERE = re.compile(r'exec: \\?"([^"\\]+)\\?": (executable file not found|stat .*: no such file)')


class KindCluster:
    """The cluster that `kind create cluster --name NAME` made, by whatever user."""

    def __init__(self, name: str, where: Home) -> None:
        self.name = name
        self.context = f"kind-{name}"
        self._home = where

    # ---- the API ----

    @cached_property
    def kubeconfig(self) -> Path:
        """A file with this cluster's context only, taken from the kubeconfigs of the user. Raises Blocked."""
        places = ":".join(str(path) for path in _kubeconfigs(os.environ))
        view = ["kubectl", "config", "view", "--raw", "--minify", "--flatten", "--context", self.context]
        found = ran(view, env={**os.environ, "KUBECONFIG": places})
        if found.code != 0:
            raise Blocked(f"there is no context {self.context} in {places}", hint=self._create)
        path = self._home.directory / f"{self.context}.kubeconfig"
        self._home.write_text(path.name, found.out)
        return path

    def kubectl(self, *arguments: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World."""
        return ran([*self._kubectl, *arguments], feed=feed, env=self._environment, seconds=seconds)

    def get(self, kind: str, name: str | None = None, namespace: str | None = None, selector: str = "") -> Any:
        """See World."""
        return kubectl_get(self, kind, name, namespace, selector)

    def apply(self, text: str) -> Ran:
        """See World. Images that only the miniature cluster has are replaced."""
        return self.kubectl("apply", "-f", "-", feed=images.translate(text))

    @property
    def _kubectl(self) -> list[str]:
        return ["kubectl", "--context", self.context]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    # ---- nodes and pods ----

    @cached_property
    def containers(self) -> list[str]:
        """The nodes' containers, which have the nodes' names, in the order of node1, node2, …. Raises Blocked."""
        listing = ["ps", "--filter", f"label={CLUSTER_LABEL}={self.name}"]
        found = docker(*listing, "--format", f'{{{{.Names}}}}\t{{{{.Label "{ROLE_LABEL}"}}}}')
        if found.code != 0:
            raise Blocked(f"docker: {_reason(found)}", hint="sudo systemctl start docker")
        rows = [line.split("\t") for line in found.out.splitlines()]
        nodes = [(ROLES.index(role), name) for name, role in rows if role in ROLES]
        if not nodes:
            raise Blocked(f"no node of the kind cluster {self.name} is running", hint=self._create)
        return [name for _, name in sorted(nodes, key=lambda one: (one[0], natural(one[1])))]

    def nodes(self) -> list[str]:
        """See World: node1, node2, …."""
        return [f"node{number}" for number in range(1, len(self.containers) + 1)]

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        """See World."""
        done = ran(
            self._into(target, feed is not None, False, command), feed=feed, env=self._env(target), seconds=seconds
        )
        problem = None if "/" in target else _unreachable(done)
        if problem is not None:
            raise Blocked(f"{target} ({self.container(target)}): {problem}", hint=self._create)
        return done

    def trace(self, node: str, *arguments: str, seconds: float = RUN_SECONDS) -> Ran:
        """Run a subcommand of k8snet-trace about the network namespace of a node or pod; `probe` sends from there.

        It is the program inside the node's container that runs.
        """
        at = node
        if "/" in node:
            at, pid = self._sandbox(node)
            arguments = (*arguments, "--from" if arguments[0] == "probe" else "--netns", str(pid))
        done = self.run(at, "k8snet-trace", *arguments, seconds=seconds)
        if is_missing(done, "k8snet-trace"):
            raise Blocked(f"{self.container(at)} has no k8snet-trace", hint=self.install_hint)
        return done

    def services(self, node: str) -> list[dict[str, Any]]:
        """See World."""
        found: list[dict[str, Any]] = self.trace(node, "services", "-o", "json").json()
        return found

    def explain(self, node: str, to: str, source: str | None = None) -> dict[str, Any]:
        """See World."""
        options = ["--source", source] if source else []
        found: dict[str, Any] = self.trace(node, "explain", to, "-o", "json", *options).json()
        return found

    def probe(self, source: str, to: str, count: int) -> dict[str, Any]:
        """See World."""
        options = ["--count", str(count), "--rate", str(PROBE_RATE), "--no-names", "-o", "json"]
        found: dict[str, Any] = self.trace(source, "probe", to, *options).json()
        return found

    def _sandbox(self, target: str) -> tuple[str, int]:
        """The node of a pod, and the process there that holds its network namespace: containerd knows it."""
        namespace, _, name = target.partition("/")
        pod = self.get("pod", name, namespace)
        if pod is None or "nodeName" not in pod["spec"]:
            raise UsageError(f"there is no pod {target}", hint="kubectl get pods --all-namespaces")
        node = pod["spec"]["nodeName"]
        found = self.run(
            node, "crictl", "pods", "--namespace", namespace, "--name", f"^{name}$", "--state", "ready", "-q"
        )
        sandbox = found.out.split()
        if found.code != 0 or not sandbox:
            raise K8snetError(f"containerd on {node} has no pod {target}: {_reason(found)}")
        return node, int(self.run(node, "crictl", "inspectp", "-o", "json", sandbox[0]).json()["info"]["pid"])

    def execute(self, target: str, command: Sequence[str], source: BinaryIO | None = None) -> int:
        """Run a command on a node or in a pod with our standard streams; gives its exit status.

        `source`: what it reads instead of our standard input. In the background of a terminal it reads nothing: docker
        and kubectl would be stopped there for wanting to.
        """
        at_terminal = source is None and sys.stdin.isatty()
        behind = at_terminal and os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp()
        terminal = at_terminal and not behind and sys.stdout.isatty()
        line = self._into(target, not behind, terminal, command)
        stdin = subprocess.DEVNULL if behind else source
        try:
            return subprocess.run(line, stdin=stdin, env=self._env(target), check=False).returncode
        except FileNotFoundError as error:
            raise Blocked(f"{error.filename} is not installed", hint=_GET[str(error.filename)]) from error

    def container(self, node: str) -> str:
        """The container of a node, by the name that lessons use or by its own; or client-host's. Raises UsageError."""
        if node == CLIENT_HOST:
            return self.client_host
        if node in self.containers:
            return node
        names = dict(zip(self.nodes(), self.containers, strict=True))
        if node not in names:
            known = ", ".join(f"{name} ({own})" for name, own in names.items())
            raise UsageError(f"there is no node {node}", hint=f"there are {known}, and pods as NAMESPACE/POD")
        return names[node]

    @property
    def client_host(self) -> str:
        """The container that is outside of the cluster, when a lesson has one (`labs.engine.kind.outside`)."""
        return f"{self.name}-{CLIENT_HOST}"

    def _into(self, target: str, streams: bool, terminal: bool, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` there. `streams`: standard input is passed on."""
        options = [*(["-i"] if streams else []), *(["-t"] if terminal else [])]
        if command[0] == sys.executable:  # Python, with k8snet's libraries: where that is there
            command = ["python3" if "/" in target or target == CLIENT_HOST else NODE_PYTHON, *command[1:]]
        if "/" in target:
            namespace, _, pod = target.partition("/")
            return [*self._kubectl, "exec", *options, "-n", namespace, pod, "--", *command]
        if target == CLIENT_HOST:
            return ["docker", "exec", *options, self.client_host, *command]
        # kubectl, in a node: as administrator, with the file that is there on the control plane
        return ["docker", "exec", *options, "-e", f"KUBECONFIG={ADMIN_KUBECONFIG}", self.container(target), *command]

    def _env(self, target: str) -> dict[str, str]:
        return self._environment if "/" in target else dict(os.environ)

    # ---- its kernel ----

    @property
    def shares_our_kernel(self) -> bool:
        """Whether the nodes run on this machine's kernel, and not in a virtual machine (Docker Desktop)."""
        return self.run("node1", "cat", str(BOOT_ID)).out.strip() == BOOT_ID.read_text().strip()

    def owner(self) -> int:
        """The first process of node1's container, as this machine sees it: it ends with the cluster."""
        found = docker("inspect", "--format", "{{.State.Pid}}", self.container("node1"))
        if found.code != 0 or not found.out.strip().isdigit() or found.out.strip() == "0":
            raise K8snetError(f"{self.container('node1')} does not run: {_reason(found)}", hint=self._create)
        return int(found.out)

    # ---- hints ----

    @property
    def _create(self) -> str:
        return f"k8snet-lab kind create{self.option}"

    @property
    def install_hint(self) -> str:
        """The command that puts k8snet-trace into the nodes."""
        return f"sudo k8snet-lab kind install{self.option}"

    @property
    def option(self) -> str:
        """What names this cluster on a command line of ours, where it is not the default."""
        return "" if self.name == "k8snet" else f" --name {self.name}"


_GET = {"docker": "sudo apt-get install docker.io", "kubectl": "scripts/setup"}


def docker(*arguments: str, seconds: float = RUN_SECONDS) -> Ran:
    """Run docker. Raises Blocked where there is none."""
    try:
        return ran(["docker", *arguments], seconds=seconds)
    except Blocked as error:
        raise Blocked(error.message, hint=_GET["docker"]) from error


def is_missing(done: Ran, program: str) -> bool:
    """Whether a command failed because its container has no such program. Docker told so on either stream."""
    found = NOT_THERE.search(done.err) or NOT_THERE.search(done.out)
    return done.code != 0 and found is not None and found[1] == program


def _unreachable(done: Ran) -> str | None:
    """Why `docker exec` did not reach the container, if it did not: the words are Docker's own."""
    words = ("Cannot connect to the Docker daemon", "Error response from daemon", "Error: No such container")
    return _reason(done) if done.code != 0 and done.err.startswith(words) else None


def _reason(done: Ran) -> str:
    lines = (done.err.strip() or done.out.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.code}"


def natural(name: str) -> list[str | int]:
    """A key that sorts worker2 before worker10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _kubeconfigs(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where kind may have written its context: what KUBECONFIG says, our home, that of the user behind sudo.

    kubectl reads all of them, and passes over those that do not exist.
    """
    if environ.get("KUBECONFIG"):
        yield from (Path(path) for path in environ["KUBECONFIG"].split(":") if path)
    yield Path("~/.kube/config").expanduser()
    caller = environ.get("SUDO_UID", "")
    if caller.isdigit():
        try:
            yield Path(pwd.getpwuid(int(caller)).pw_dir) / ".kube/config"
        except KeyError:
            return
