"""Where the commands about rules find them: the options --rules and --netns, and the rules that they choose.

What belongs here: those two options. What does not: reading rules (`tracer.rules.files`, `tracer.rules.live`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tracer.errors import UsageError

if TYPE_CHECKING:
    from tracer.rules.model import RuleSet

F = Callable[..., Any]


def rules_options(command: F) -> F:
    """Give a command --rules (argument `rules`, a tuple of paths) and --netns (argument `netns`, or None)."""
    files = click.option(
        "--rules",
        multiple=True,
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Saved rules instead of the kernel's: iptables-save, ip6tables-save, nft list ruleset or nft -j, and the "
        "sets of ipset save. Repeatable; needs no root.",
    )
    namespace = click.option(
        "--netns", metavar="NAME|PID|PATH", help="The network namespace whose rules to read. Default: this one's."
    )
    kubeconfig = click.option(
        "--kubeconfig",
        type=click.Path(dir_okay=False),
        metavar="PATH",
        help="Kubernetes API to ask for names, where maps of eBPF serve Services: they hold none.",
    )
    return files(namespace(kubeconfig(command)))


def netns_path(rules: tuple[str, ...], netns: str | None) -> str | None:
    """The path of the chosen namespace; None for our own, or where rules come from files.

    Raises UsageError when both are asked for, MissingError when there is no such namespace.
    """
    if netns is None:
        return None
    if rules:
        raise UsageError("--rules reads files, so there is no namespace to choose", hint="leave --netns out")
    from tracer.netns import resolve

    return resolve(netns)


def chosen_rules(
    rules: tuple[str, ...], netns: str | None, kubeconfig: str | None = None, source: str | None = None
) -> RuleSet:
    """The rules of the files, or of the kernel, with the eBPF datapath that processes there meet.

    source: whoever asks, where that is told. Raises what reading raises: NotRoot, ToolMissing, FormatError, …
    """
    path = netns_path(rules, netns)
    if rules:
        from tracer.rules.files import read_files

        return read_files(rules)
    from tracer.rules import sockets_live
    from tracer.rules.live import read_rules

    found = read_rules(path)
    found.sockets = found.sockets or sockets_live.met_in(path)
    if found.sockets is None and source is not None and not _has_services(found):
        found.sockets, note = sockets_live.of_pod(source)
        found.notes += [] if note is None else [note]
    if found.sockets is not None:
        _name(found, kubeconfig)
    return found


def _has_services(found: RuleSet) -> bool:
    """Whether kube-proxy's rules are here: then a pod with such an address is most likely this node's."""
    return any(table.name == "kube-proxy" or "KUBE-SERVICES" in table.chains for table in found.tables)


def _name(found: RuleSet, kubeconfig: str | None) -> None:
    """Give the Services of an eBPF datapath their names."""
    from tracer.names.services import ServiceNames

    assert found.sockets is not None
    with contextlib.closing(ServiceNames(kubeconfig)) as asking:
        trouble = asking.trouble()
        if trouble is not None:
            found.notes.append(f"no Kubernetes API: {trouble}; maps of eBPF hold no names, so addresses stand for them")
        found.sockets = replace(found.sockets, names=asking.names())
