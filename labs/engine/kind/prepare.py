"""What a lesson finds on a kind cluster when it starts: what the miniature cluster has from the start, and its own.

A kind cluster takes a minute to make, so a lesson does not make one: it starts on the one that is there, after what
lessons made before is deleted and made anew. What a learner changed elsewhere, or in a node's kernel, stays, but for
what the lesson's cleanup.sh takes away.

What belongs here: whether the cluster fits the lesson, and the objects. What does not: the cluster (`create`), and the
program in its nodes (`install`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from labs.cluster import manifests
from labs.engine import wording
from labs.engine.kind import create, names, placement, servicelb
from labs.engine.kind.world import KindCluster, is_missing
from labs.engine.spec import Lesson
from labs.engine.world import Blocked, Ran
from tracer.errors import K8snetError, UsageError

PULL_SECONDS = 300.0  # for images, when they are not on the node yet
DELETE_SECONDS = 90.0
GRACE_SECONDS = 1
BUILT_IN = frozenset({"default", "kube-node-lease", "kube-public", "kube-system", "local-path-storage"})

Say = Callable[[str], None]


def why_not(lesson: Lesson) -> str | None:
    """Why a lesson can't run on any kind cluster; None when it can."""
    if "kind" not in lesson.requires.on:
        return "it needs what only the cluster in miniature has"
    wanted = lesson.requires.only_in_miniature
    return wanted and f"it needs {wanted} of the cluster in miniature"


def check(world: KindCluster, lesson: Lesson) -> None:
    """Raise UsageError or Blocked unless the cluster is as the lesson requires, and its nodes have the tool."""
    requires = lesson.requires
    replace = f"kind delete cluster --name {world.name} && k8snet-lab kind create {lesson.id}{world.option}"
    if (problem := why_not(lesson)) is not None:
        raise UsageError(f"{lesson.id} can't run on kind: {problem}", hint=f"sudo k8snet-lab start {lesson.id}")
    have = len(world.containers)
    if have < requires.nodes:
        raise UsageError(f"{lesson.id} needs {requires.nodes} nodes; {world.name} has {have}", hint=replace)
    mode, wanted = proxy_mode(world), create.kube_proxy(requires.proxy)
    if mode != wanted:
        raise UsageError(f"{lesson.id} needs kube-proxy's mode {wanted}; here it is {mode}", hint=replace)
    if requires.ip_family == "dual" and len(_families(world)) < 2:
        raise UsageError(f"{lesson.id} needs IPv4 and IPv6; {world.name} has one of them", hint=replace)
    for node in world.nodes():
        found = world.run(node, "k8snet-trace", "--version")
        if is_missing(found, "k8snet-trace"):
            raise Blocked(f"{world.container(node)} has no k8snet-trace", hint=world.install_hint)


def proxy_mode(world: KindCluster) -> str:
    """What kube-proxy is configured for: iptables, nftables, ipvs; "none" where there is no kube-proxy."""
    found = world.get("configmap", "kube-proxy", "kube-system")
    if found is None:
        return "none"
    try:
        return str((yaml.safe_load(found["data"]["config.conf"]) or {}).get("mode") or "iptables")
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise K8snetError(f"configmap kube-system/kube-proxy is not kubeadm's: {error!r}") from error


def _families(world: KindCluster) -> list[str]:
    """One network of pods for each IP family, on the first node."""
    nodes = world.get("nodes")
    return list(nodes[0]["spec"].get("podCIDRs") or ()) if nodes else []


def prepare(world: KindCluster, lesson: Lesson, say: Say = lambda _: None) -> None:
    """Have what the lesson starts from, and nothing of it changed by who was here before. Raises K8snetError."""
    workload = Path(manifests.__file__).with_name("workload.yaml").read_text(encoding="utf-8")
    say("what was there before goes")
    clean(world, lesson)
    _delete(world, workload)
    _open_control_planes(world)
    if lesson.requires.proxy == "ebpf":
        say("service-lb: Services by eBPF")
        servicelb.deploy(world)
    say("workload (images are pulled)")
    words = names.words(world)
    own = (wording.text(path.read_text(encoding="utf-8"), words) for path in lesson.manifests)
    for text in [placement.placed(workload, names.node(world, 1)), *own]:
        _must(world.apply(text), "kubectl apply")
    wait(world)


def _open_control_planes(world: KindCluster) -> None:
    """Have pods on the control plane, too, as in miniature; kind itself does so where that is the only node."""
    for node in world.get("nodes"):
        for taint in node["spec"].get("taints") or ():
            if taint["key"] == names.CONTROL_PLANE_LABEL:
                remove = f"{taint['key']}:{taint['effect']}-"
                _must(world.kubectl("taint", "nodes", node["metadata"]["name"], remove), "kubectl taint")


def clean(world: KindCluster, lesson: Lesson) -> None:
    """Delete what the lesson's manifests make, and what learners make on nodes, if it says how. Raises K8snetError."""
    if lesson.cleanup:
        for node in world.nodes():
            _must(world.run(node, "sh", "-eu", feed=lesson.cleanup), f"{node}: {lesson.id}/cleanup.sh")
    of_steps = [lesson.directory / "manifests" / name for step in lesson.steps for name in step.apply]
    for path in reversed([*lesson.manifests, *of_steps]):
        _delete(world, path.read_text(encoding="utf-8"))


def wait(world: KindCluster) -> None:
    """Wait for the workload to be ready, and for what serves it. Raises K8snetError with kubectl's words."""
    timeout = f"--timeout={PULL_SECONDS:.0f}s"
    seconds = PULL_SECONDS + 10
    rollout = world.kubectl("-n", "fastapi", "rollout", "status", "deployment/lets-ship-it", timeout, seconds=seconds)
    _must(rollout, "fastapi/lets-ship-it")
    ready = world.kubectl("-n", "default", "wait", "--for=condition=Ready", "pod/client", timeout, seconds=seconds)
    _must(ready, "default/client")
    for kind, name in (("deployment", "coredns"), ("daemonset", "kube-proxy")):  # as left when a fault was taken back
        if world.get(kind, name, "kube-system") is not None:
            rollout = world.kubectl(
                "-n", "kube-system", "rollout", "status", f"{kind}/{name}", timeout, seconds=seconds
            )
            _must(rollout, f"kube-system/{name}")


def _delete(world: KindCluster, text: str) -> None:
    """Delete what a manifest makes, but nothing that every cluster has."""
    documents = [one for one in yaml.safe_load_all(text) if one]
    ours = yaml.safe_dump_all(list(_deletable(documents)), sort_keys=False)
    if not ours.strip():
        return
    options = ["--ignore-not-found", f"--grace-period={GRACE_SECONDS}", f"--timeout={DELETE_SECONDS:.0f}s"]
    done = world.kubectl("delete", "-f", "-", *options, feed=ours, seconds=DELETE_SECONDS + 10)
    if "no matches for kind" not in done.err:  # of a kind that the manifest itself defines, and that is gone
        _must(done, "kubectl delete")


def _deletable(documents: Iterable[dict[str, object]]) -> Iterable[dict[str, object]]:
    for one in documents:
        metadata = one.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        space = metadata.get("namespace") if isinstance(metadata, dict) else None
        if not (one.get("kind") == "Namespace" and name in BUILT_IN) and space != "kube-system":
            yield one


def _must(done: Ran, what: str) -> None:
    if done.code != 0:
        reason = done.err.strip() or done.out.strip() or ("it takes too long" if done.code == 124 else "")
        raise K8snetError(f"{what}: {reason or f'exit code {done.code}'}", hint="kubectl get events -A")
