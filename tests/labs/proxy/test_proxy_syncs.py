"""Sync after sync in a real kernel: partial ones leave what one full sync of the same objects leaves, in every mode."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from labs.cluster.kubeproxy import Proxier
from labs.cluster.proxy.addresses import networks_of_family
from labs.cluster.proxy.iptables import chain_hash
from labs.cluster.proxy.node import local_node
from labs.cluster.proxy.settings import Settings
from labs.cluster.proxymodes import backend
from tests.labs.proxy.kube_objects import CLUSTER_CIDRS, fixture_objects
from tracer.errors import K8snetError
from tracer.netns import run_in

pytestmark = pytest.mark.root

Key = tuple[str, str]
MODES = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "")]
STEPS = 7


@pytest.fixture
def namespaces() -> Iterator[Callable[[], str]]:
    """Makes network namespaces, given as paths."""
    holders: list[subprocess.Popen[bytes]] = []

    def make() -> str:
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        holders.append(holder)
        assert holder.stdout is not None
        holder.stdout.readline()
        return f"/proc/{holder.pid}/ns/net"

    yield make
    for holder in holders:
        holder.kill()
        holder.communicate()


class Cluster:
    """The API's objects, and what may become of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        found = fixture_objects()
        self.nodes = found["nodes"]
        self.all = {kind: self.by_name(found[kind]) for kind in ("services", "endpointslices")}
        self.services, self.slices = dict(self.all["services"]), dict(self.all["endpointslices"])

    @staticmethod
    def by_name(items: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        return {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in items}

    def change(self) -> None:
        """Do one to three of the things that users and controllers do."""
        doings = [self.remove, self.restore, self.toggle, self.toggle, self.renumber, self.affinity]
        for doing in self.random.choices(doings, k=self.random.randint(1, 3)):
            doing()

    def remove(self) -> None:
        kind = self.random.choice([self.services, self.slices])
        if kind:
            del kind[self.random.choice(list(kind))]

    def restore(self) -> None:
        kind = self.random.choice(["services", "endpointslices"])
        key = self.random.choice(list(self.all[kind]))
        (self.services if kind == "services" else self.slices)[key] = self.all[kind][key]

    def edit(self, items: dict[Key, dict[str, Any]]) -> dict[str, Any]:
        """One object, to be edited: another one than before, as after a watch event."""
        key = self.random.choice(list(items))
        items[key] = copy.deepcopy(items[key])
        return items[key]

    def toggle(self) -> None:
        item = self.edit(self.slices)
        for entry in item["endpoints"]:
            if self.random.random() < 0.5:
                ready = self.random.random() < 0.5
                entry["conditions"] = {"ready": ready, "serving": ready, "terminating": False}

    def renumber(self) -> None:
        item = self.edit(self.slices)
        for port in item.get("ports") or ():
            port["port"] = self.random.randint(1, 65535)

    def affinity(self) -> None:
        spec = self.edit(self.services)["spec"]
        spec["sessionAffinity"] = self.random.choice(["None", "ClientIP"])
        spec.pop("sessionAffinityConfig", None)


def settings(nodes: list[dict[str, Any]], family: int) -> Settings:
    networks = networks_of_family(CLUSTER_CIDRS, family)
    return Settings(node=local_node(nodes, "node1", family), family=family, cluster_cidr=networks[0])


def state(netns: str, mode: str, variant: str, family: int) -> Any:
    """What the kernel of `netns` holds: per chain its rules in order; sets and maps as they have no order."""
    if mode == "nftables":
        text = run_in(netns, lambda: subprocess.check_output(["nft", "-j", "list", "ruleset"], text=True))
        return nft_state(json.loads(text)["nftables"])
    program = f"{'iptables' if family == 4 else 'ip6tables'}-{variant}-save"
    text = run_in(netns, lambda: subprocess.check_output([program], text=True, stderr=subprocess.DEVNULL))
    chains: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            chains[table, line[1:].split()[0]] = []
        elif line.startswith("-A"):
            chains[table, line.split()[1]].append(line)
    return chains


def nft_state(document: list[dict[str, Any]]) -> Any:
    chains: dict[str, list[str]] = {}
    sets: dict[str, Any] = {}
    for entry in document:
        if "chain" in entry:
            chains[entry["chain"]["name"]] = []
        elif "rule" in entry:
            chains[entry["rule"]["chain"]].append(json.dumps(entry["rule"]["expr"]))
        elif "set" in entry or "map" in entry:
            one = entry.get("set") or entry["map"]
            elements = Counter(json.dumps(element) for element in one.get("elem", ()))
            sets[one["name"]] = (str(one["type"]), str(one.get("flags")), one.get("timeout"), elements)
    return chains, sets


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_partial_syncs_leave_what_a_full_one_leaves(
    namespaces: Callable[[], str], mode: str, variant: str, family: int
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    cluster = Cluster(seed)
    step_by_step, at_once = namespaces(), namespaces()
    proxier = Proxier("node1", backend(mode, family, variant))

    def sync(netns: str, one: Proxier) -> None:
        about = settings(cluster.nodes, family)
        run_in(netns, lambda: asyncio.run(one.sync(cluster.services, cluster.slices, about)))

    sync(step_by_step, proxier)
    for _ in range(STEPS):
        cluster.change()
        sync(step_by_step, proxier)
    sync(at_once, Proxier("node1", backend(mode, family, variant)))
    assert state(step_by_step, mode, variant, family) == state(at_once, mode, variant, family)


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_a_sync_that_fails_is_made_up_for(
    namespaces: Callable[[], str], mode: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, about = Cluster(seed=1), settings(fixture_objects()["nodes"], 4)
    netns, fresh = namespaces(), namespaces()
    proxier = Proxier("node1", backend(mode, 4, variant))

    def sync(where: str, one: Proxier) -> None:
        run_in(where, lambda: asyncio.run(one.sync(cluster.services, cluster.slices, about)))

    sync(netns, proxier)
    for _ in range(5):
        cluster.change()
    with monkeypatch.context() as broken, pytest.raises(K8snetError, match="not now"):
        broken.setattr("labs.cluster.netfilter._run", _refuse)
        sync(netns, proxier)
    sync(netns, proxier)
    sync(fresh, Proxier("node1", backend(mode, 4, variant)))
    assert state(netns, mode, variant, 4) == state(fresh, mode, variant, 4)


async def _refuse(*_: Any, **__: Any) -> str:
    raise K8snetError("not now")


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_another_kube_proxy_takes_over(namespaces: Callable[[], str], mode: str, variant: str) -> None:
    cluster, about = Cluster(seed=2), settings(fixture_objects()["nodes"], 4)
    netns, fresh = namespaces(), namespaces()

    def sync(where: str, one: Proxier) -> None:
        run_in(where, lambda: asyncio.run(one.sync(cluster.services, cluster.slices, about)))

    for _ in range(3):
        one = Proxier("node1", backend(mode, 4, variant))
        sync(netns, one)
        cluster.services.pop(cluster.random.choice(list(cluster.services)))
    for where in (netns, fresh):
        sync(where, Proxier("node1", backend(mode, 4, variant)))
    assert state(netns, mode, variant, 4) == state(fresh, mode, variant, 4)


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_a_change_of_endpoints_writes_only_its_service(
    namespaces: Callable[[], str], mode: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, about = Cluster(seed=3), settings(fixture_objects()["nodes"], 4)
    netns = namespaces()
    proxier = Proxier("node1", backend(mode, 4, variant))
    run_in(netns, lambda: asyncio.run(proxier.sync(cluster.services, cluster.slices, about)))
    fed = record_input(monkeypatch)
    key, item = next((key, item) for key, item in cluster.slices.items() if len(item["endpoints"]) > 2)
    cluster.slices[key] = {**item, "endpoints": item["endpoints"][:-1]}
    run_in(netns, lambda: asyncio.run(proxier.sync(cluster.services, cluster.slices, about)))
    service = item["metadata"]["labels"]["kubernetes.io/service-name"]
    written = [line for text in fed for line in text.splitlines() if line.startswith(("-A", "add rule"))]
    assert written
    mine = f"{key[0]}/{service}"
    names = [f"{mine}:{port['name']}{port['protocol'].lower()}" for port in item["ports"]]
    chains = [chain_hash(name) for name in names]  # KUBE-SVC-, KUBE-EXT-…; other rules and chains are named by `mine`
    assert [line for line in written if mine not in line and not any(chain in line for chain in chains)] == []


def record_input(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fed to the programs from now on."""
    from labs.cluster import netfilter

    fed: list[str] = []
    run = netfilter._run

    async def recording(*arguments: str, feed: str = "") -> str:
        fed.append(feed)
        return await run(*arguments, feed=feed)

    monkeypatch.setattr(netfilter, "_run", recording)
    return fed


@pytest.mark.parametrize(("mode", "variant"), MODES)
def test_shared_chains_follow_a_service_that_loses_its_endpoints_or_its_address(
    namespaces: Callable[[], str], mode: str, variant: str
) -> None:
    cluster, about = Cluster(seed=4), settings(fixture_objects()["nodes"], 4)
    netns, fresh = namespaces(), namespaces()
    proxier = Proxier("node1", backend(mode, 4, variant))
    run_in(netns, lambda: asyncio.run(proxier.sync(cluster.services, cluster.slices, about)))
    whole = state(netns, mode, variant, 4)
    key, item = next((key, item) for key, item in cluster.slices.items() if len(item["endpoints"]) > 2)
    cluster.slices[key] = {**item, "endpoints": []}
    run_in(netns, lambda: asyncio.run(proxier.sync(cluster.services, cluster.slices, about)))
    other = Proxier("node1", backend(mode, 4, variant))
    run_in(fresh, lambda: asyncio.run(other.sync(cluster.services, cluster.slices, about)))
    assert state(netns, mode, variant, 4) == state(fresh, mode, variant, 4) != whole
    cluster.slices[key] = item
    run_in(netns, lambda: asyncio.run(proxier.sync(cluster.services, cluster.slices, about)))
    assert state(netns, mode, variant, 4) == whole
