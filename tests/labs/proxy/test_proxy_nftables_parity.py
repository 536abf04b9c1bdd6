"""labs.cluster.proxy.nftables against what a real kube-proxy v1.30.5 wrote: no difference in any chain, set or map."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from labs.cluster.proxy.nftables import render
from tests.labs.proxy.kube_objects import CLUSTER_CIDRS, FIXTURE, fixture_objects


def both_families() -> str:
    objects = fixture_objects()
    return "".join(render(objects, node_name="node1", family=family, cluster_cidrs=CLUSTER_CIDRS) for family in (4, 6))


def load_and_list(script: str, *options: str) -> str:
    """Load `script` into a new network namespace, which ends with this one shell, and give what nft lists."""
    result = subprocess.run(
        ["unshare", "--net", "sh", "-ec", f"nft -f -; nft {' '.join(options)} list ruleset"],
        input=script,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def things(listing: str) -> dict[tuple[str, ...], Any]:
    """Give all objects of a JSON listing: rules by chain in order; elements sorted, as the kernel keeps them hashed."""
    found: dict[tuple[str, ...], Any] = {}
    for entry in json.loads(listing)["nftables"]:
        ((kind, value),) = entry.items()
        if kind == "metainfo":
            continue
        del value["handle"]
        if "elem" in value:
            value["elem"] = sorted(json.dumps(element, sort_keys=True) for element in value["elem"])
        if kind == "rule":
            found.setdefault((value["family"], "rules of", value["chain"]), []).append(value)
        else:
            found[value["family"], kind, value["name"]] = value
    return found


def blocks(listing: str) -> dict[tuple[str, str], list[str]]:
    """Give the lines of each chain, set and map of a text listing; those of sets and maps sorted."""
    found: dict[tuple[str, str], list[str]] = {}
    table = block = ""
    for line in listing.splitlines():
        text = line.strip()
        if line.startswith("table "):
            table, block = text, ""
            found[table, block] = []
        elif line.startswith("\t") and text.endswith("{") and not line.startswith("\t\t"):
            block = text
            found[table, block] = []
        elif text not in ("", "}"):
            found[table, block].append(text.removeprefix("elements = { ").removesuffix(" }").rstrip(","))
    return {key: lines if key[1].startswith("chain") else sorted(lines) for key, lines in found.items()}


@pytest.mark.root
def test_every_chain_set_and_map_is_the_same() -> None:
    expected = things((FIXTURE / "nftables.json").read_text())
    assert things(load_and_list(both_families(), "-j")) == expected


@pytest.mark.root
def test_the_listing_reads_the_same() -> None:
    """The text shows what nft's JSON leaves out: comments of tables and chains, all flags."""
    assert blocks(load_and_list(both_families())) == blocks((FIXTURE / "nftables.nft").read_text())


@pytest.mark.root
def test_a_second_sync_changes_nothing() -> None:
    script = both_families()
    assert things(load_and_list(script * 2, "-j")) == things(load_and_list(script, "-j"))


@pytest.mark.root
def test_a_sync_with_no_services_empties_sets_and_maps() -> None:
    """Only chains and affinity sets of Services stay behind: they are for the loader to remove."""
    nothing = "".join(render({}, node_name="node1", family=family) for family in (4, 6))
    after = things(load_and_list(both_families() + nothing, "-j"))
    assert {name: value for name, value in after.items() if "/" not in name[-1]} == things(load_and_list(nothing, "-j"))
