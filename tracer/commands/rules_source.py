"""Where the commands about rules find them: the options --rules and --netns, and the rules that they choose.

What belongs here: those two options. What does not: reading rules (`tracer.rules.files`, `tracer.rules.live`).
"""

from __future__ import annotations

from collections.abc import Callable
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
    return files(namespace(command))


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


def chosen_rules(rules: tuple[str, ...], netns: str | None) -> RuleSet:
    """The rules of the files, or of the kernel. Raises what reading raises: NotRoot, ToolMissing, FormatError, …"""
    path = netns_path(rules, netns)
    if rules:
        from tracer.rules.files import read_files

        return read_files(rules)
    from tracer.rules.live import read_rules

    return read_rules(path)
