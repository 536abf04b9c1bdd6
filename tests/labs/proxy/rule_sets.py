"""Reading iptables-save text for comparison: chains, and whose Service a rule is."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from itertools import groupby

Chains = dict[tuple[str, str], list[str]]

BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")

# The chains that hold rules of all Services. kube-proxy writes them Service by Service in the order of a Go map, which
# Go randomises on purpose (syncProxyRules: `for svcName, svc := range proxier.svcPortMap`, which is a
# `map[ServicePortName]ServicePort`). Within one Service the order is that of the code.
SHARED = (
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-PROXY-FIREWALL"),
    ("filter", "KUBE-SERVICES"),
    ("nat", "KUBE-NODEPORTS"),
    ("nat", "KUBE-SERVICES"),
)

_NODEPORTS_COMMENT = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"


def chains_of(text: str) -> Chains:
    """Give the rules of each (table, chain), in order; chains without rules too, but not empty built-in ones.

    Each chain must be declared once, and before its rules.
    """
    chains: Chains = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chain = line[1:].split()[0]
            assert (table, chain) not in chains, f"{chain} is declared twice"
            if chain not in BUILT_IN:
                chains[table, chain] = []
        elif line.startswith("-A "):
            chain = line.split()[1]
            assert chain in BUILT_IN or (table, chain) in chains, f"{chain} is not declared"
            chains.setdefault((table, chain), []).append(line)
    return chains


def service_of(rule: str) -> str:
    """Give the Service port that a rule of a shared chain is about ("" for the one that is about none)."""
    words = shlex.split(rule)
    comment = words[words.index("--comment") + 1]
    return "" if comment == _NODEPORTS_COMMENT else comment.split(" ")[0]


def by_service(rules: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Split the rules of a shared chain into runs of one Service port each."""
    return [(name, list(run)) for name, run in groupby(rules, key=service_of)]


def targets(rules: Sequence[str]) -> set[str]:
    """Give the chains that rules lead to."""
    return {match[1] for rule in rules if (match := re.search(r" -j (KUBE-\S+)", rule))}


def load_and_save(text: str, *, program: str) -> str:
    """Load `text` into a new, empty network namespace with PROGRAM-restore and give what PROGRAM-save says.

    The namespace lives as long as the one shell that unshare starts, so there is nothing to clean up.
    """
    result = subprocess.run(
        ["unshare", "--net", "sh", "-ec", f"{program}-restore; {program}-save"],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
