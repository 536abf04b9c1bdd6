"""A miniature cluster that passes for one of kind: a kubeconfig with its context, and a `docker` that enters its nodes.

    NAME-control-plane ─▶ node1, NAME-worker ─▶ node2

What is real: the API, kubectl, the nodes' kernel and its rules, the live trace. What is played: docker, the ConfigMaps
of kubeadm and kube-proxy, the public image, which this machine's own programs stand for, and, when asked for, how the
nodes of kind route; and on a cluster that is to have no kube-proxy, RBAC's kinds, and what `kind install` puts into
nodes. What belongs here: playing. What does not: assertions.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scapy
import yaml

from labs.engine.course import Course
from labs.engine.kind import images
from labs.engine.progress import Home
from labs.engine.session import Walk
from tests.labs.lab import Lab, lab
from tests.labs.machine import REPOSITORY

DOCKER = """#!{python}
import json, os, subprocess, sys
NODES = {{"{name}-control-plane": "node1", "{name}-worker": "node2", "{name}-client-host": "client-host"}}
def lab(*words):
    return [sys.executable, "-m", "labs.cli", words[0], "--name", "{name}", *words[1:]]
os.environ["PYTHONPATH"] = "{repository}"
os.environ["XDG_STATE_HOME"] = "/nonexistent"  # Docker knows of no lesson: else `exec` would come back here
words = sys.argv[1:]
def status():
    # It ends with 1 while some pod is not ready, which does not concern Docker.
    return json.loads(subprocess.run(lab("status", "-o", "json"), stdout=subprocess.PIPE, check=False).stdout)
def pids(pid):
    # As each of the PID namespaces that it is in knows it, this machine's first.
    return next(line for line in open(f"/proc/{{pid}}/status") if line.startswith("NSpid:")).split()[1:]
def crictl(node, words):
    assert words[0] != "pods" or words[5:] == ["--state", "ready", "-q"], words
    if words[0] == "pods":
        return f"{{words[2]}}/{{words[4].strip('^$')}}"
    assert words[:3] == ["inspectp", "-o", "json"], words
    found = status()
    (pod,) = (one["pid"] for one in found["pods"] if f"{{one['namespace']}}/{{one['name']}}" == words[3])
    (own,) = (one["pid"] for one in found["nodes"] if one["name"] == node)
    return json.dumps({{"info": {{"pid": int(pids(pod)[len(pids(own)) - 1])}}}})
if words[0] == "ps":
    assert words[1:3] == ["--filter", "label=io.x-k8s.kind.cluster={name}"], words
    print("{name}-worker\\tworker\\n{name}-control-plane\\tcontrol-plane")
elif words[0] == "inspect" and words[3] == "{name}-client-host":
    if not os.path.exists("{outside}"):
        sys.exit("Error: No such object: {name}-client-host")
    assert words[1:3] == ["--format", "{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}} {{{{end}}}}"], words
    print("198.51.100.2 ")
elif words[0] == "inspect" and ".Gateway" in words[2]:
    print("172.18.0.1 172.18.0.2/16 ")
elif words[0] == "inspect" and ".Networks" in words[2]:
    print("kind ")
elif words[0] == "run":
    assert words[1:] == ["--detach", "--rm", "--name", "{name}-client-host", "--network", "kind", "--pid",
                         "container:{name}-control-plane", "client", "sleep", "infinity"], words
    open("{outside}", "x").close()
elif words[0] == "rm":
    assert words[1:] == ["--force", "{name}-client-host"], words
    if os.path.exists("{outside}"):
        os.remove("{outside}")
elif words[0] == "inspect":
    assert words[1:3] == ["--format", "{{{{.State.Pid}}}}"], words
    print(next(node["pid"] for node in status()["nodes"] if node["name"] == NODES[words[3]]))
elif words[0] == "exec":
    rest = words[1:]
    while rest[0].startswith("-"):
        rest = rest[2:] if rest[0] == "-e" else rest[1:]
    node, *command = rest
    if command[0] == "crictl":
        print(crictl(NODES[node], command[1:]))
        sys.exit()
    if command[0] == "k8snet-trace":
        if not os.path.exists("{installed}"):
            sys.exit('OCI runtime exec failed: exec failed: exec: "k8snet-trace": executable file not found in $PATH')
        command = ["env", "PYTHONPATH={repository}", sys.executable, "-m", "tracer", *command[1:]]
    line = lab("exec", NODES[node], "--", *command)
    os.execv(line[0], line)
else:
    sys.exit(f"docker {{words}}")
"""
# Routes to a node's own pods as the CNI plugin ptp v1.7.1 makes them (plugins/main/ptp, AddHostRoute in pkg/ip), and
# reverse path filtering as the node image of kind v0.29.0 has it (images/base/files/etc/sysctl.d).
ROUTING = """
ip route show scope link | sed -n 's/^\\([0-9.]*\\) dev \\(veth[^ ]*\\) .*/\\1 dev \\2/p' | while read -r route; do
    ip route delete $route
    ip route add $route scope host
done
for file in /proc/sys/net/ipv4/conf/*/rp_filter; do
    echo 1 >$file
done
"""
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system, labels: {app: kube-proxy}}
data:
  # as kubeadm writes it for kind: pkg/cluster/internal/kubeadm/config.go of kind v0.29.0 gives mode
  config.conf: |-
    apiVersion: kubeproxy.config.k8s.io/v1alpha1
    bindAddress: 0.0.0.0
    clusterCIDR: 10.244.0.0/16
    kind: KubeProxyConfiguration
    mode: MODE
"""


KUBEADM = """
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  # as kubeadm keeps what kind has given it; the endpoint is a name there
  ClusterConfiguration: |
    apiVersion: kubeadm.k8s.io/v1beta4
    controlPlaneEndpoint: 172.18.0.2:6443
    kind: ClusterConfiguration
    networking:
      dnsDomain: cluster.local
      podSubnet: 10.244.0.0/16
      serviceSubnet: 10.96.0.0/16
"""
# /opt/k8snet/venv/bin/k8snet-lab of a node. Docker shows a kind node its own cgroup at /sys/fs/cgroup; this one has the
# machine's there.
COMMAND = """#!/bin/sh
for word; do
    shift
    [ "$word" != /sys/fs/cgroup ] || word={cgroup}
    set -- "$@" "$word"
done
exec env PYTHONPATH={repository} {python} -m labs.cli "$@"
"""
# What a kind node is like: /etc/sysctl.d of kind v0.29.0's image; and Docker mounts no bpffs.
AS_KIND = """
cd /proc/sys/net/ipv4/conf
echo 1 >all/route_localnet; echo 1 >all/rp_filter; echo 1 >default/rp_filter; echo 0 >all/arp_ignore
umount /sys/fs/bpf
mkdir -p /opt/k8snet/venv/bin
cat >/opt/k8snet/venv/bin/k8snet-lab
chmod 755 /opt/k8snet/venv/bin/k8snet-lab
"""
REMOVE = ("service-lb", "remove")
LAB = "/opt/k8snet/venv/bin/k8snet-lab"


class KindLike:
    """One such cluster, of a running Lab. `bin`: to be put before PATH. `kubeconfig`: kind's, so to say.

    A Lab with `--proxy ebpf` becomes one that has nothing at all for Services.
    """

    def __init__(self, cluster: Lab, directory: Path) -> None:
        self.name = cluster.name
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.installed = directory / "installed"
        self.installed.touch()
        self.kubeconfig = directory / "config"
        own = cluster.run("kubeconfig").stdout.strip()
        self.kubeconfig.write_text(Path(own).read_text())
        now = self.kubectl("config", "current-context").strip()
        self.kubectl("config", "rename-context", now, f"kind-{self.name}")
        self.kubectl("apply", "-f", "-", feed=KUBEADM)
        if "ebpf" in cluster.options:
            self._take_away_proxy(cluster)
        else:
            self.proxy_mode("iptables")
        docker = self.bin / "docker"
        self.outside = directory / "outside"
        values = {
            "python": sys.executable,
            "repository": REPOSITORY,
            "installed": self.installed,
            "outside": self.outside,
        }
        docker.write_text(DOCKER.format(name=self.name, **values))
        docker.chmod(0o755)

    def kubectl(self, *arguments: str, feed: str | None = None) -> str:
        """Run the real kubectl on it."""
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(["kubectl", *arguments], input=feed, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def route_as_kind(self) -> None:
        """Have the nodes route to the pods that there are as kind's do."""
        for node in ("node1", "node2"):
            lab("exec", "--name", self.name, node, "--", "sh", "-eu", feed=ROUTING)

    def proxy_mode(self, mode: str) -> None:
        """Have kube-proxy's ConfigMap say so."""
        self.kubectl("apply", "-f", "-", feed=CONFIG_MAP.replace("MODE", mode))

    def _take_away_proxy(self, cluster: Lab) -> None:
        nodes = json.loads(cluster.run("status", "-o", "json", check=False).stdout)["nodes"]
        self.kubectl("apply", "-f", str(Path(__file__).with_name("rbac.yaml")))
        self.kubectl("wait", "--for=condition=Established", "-f", str(Path(__file__).with_name("rbac.yaml")))
        self.kubectl("-n", "kube-system", "delete", "daemonset", "service-lb", "--cascade=foreground")
        self.kubectl("-n", "kube-system", "delete", "serviceaccount", "service-lb")
        for node in nodes:
            whole = Path(node["cgroup"]).parent  # with its pods
            command = COMMAND.format(cgroup=whole, repository=REPOSITORY, python=sys.executable)
            cluster.exec(node["name"], "env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "labs.cli", *REMOVE)
            cluster.exec(node["name"], "sh", "-ec", AS_KIND, feed=command)

    def set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have everything find this docker, this kubeconfig, and images that the miniature cluster can run."""
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        monkeypatch.setenv("KUBECONFIG", str(self.kubeconfig))
        played = copy.deepcopy(images.table())
        for entry in played.values():
            entry["image"] = "client"  # it runs the `command` of the manifest, which is what counts here
        played["nicolaka/netshoot:v0.13"] = {"image": "client"}  # its sh and nsenter are this machine's
        monkeypatch.setattr(images, "table", lambda: played)
        translate = images.translate
        monkeypatch.setattr(images, "translate", lambda text: _with_libraries(translate(text)))


def _with_libraries(text: str) -> str:
    """A manifest whose containers' python3 has scapy, as the public image's has."""
    documents = list(yaml.safe_load_all(text))
    for container in images._containers(documents):
        container.setdefault("env", []).append({"name": "PYTHONPATH", "value": str(Path(scapy.__file__).parents[1])})
    return yaml.safe_dump_all(documents)


@contextmanager
def walking(like: KindLike, directory: Path) -> Iterator[Walk]:
    """A walk of somebody whose files are in `directory`, on that cluster; what was open is closed afterwards."""
    where = Home(directory / "state" / "k8snet", directory / "files", (os.geteuid(), os.getegid()))
    with pytest.MonkeyPatch.context() as monkeypatch:
        like.set(monkeypatch)
        for name, value in where.environment.items():
            monkeypatch.setenv(name, value)
        made = Walk(Course.read(), where, like.name)
        try:
            yield made
        finally:
            made.stop()
