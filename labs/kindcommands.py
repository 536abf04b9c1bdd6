"""The commands of `k8snet-lab` about kind clusters: kind create, kind install; and whether a lesson runs on one.

What belongs here: options in, one call each, printing. What does not: anything another program could use
(`labs.engine.kind`). Heavy imports wait until they are needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tracer.errors import FormatError, UsageError
from tracer.program import say

if TYPE_CHECKING:
    from labs.engine.kind.world import KindCluster

PROXIES = ("iptables", "nftables", "none")
IP_FAMILIES = ("ipv4", "dual")
SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash || exec sh"]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def of_open_lesson(name: str) -> KindCluster | None:
    """The kind cluster that the open lesson runs on, when it is the one of that name."""
    from labs.engine.progress import home, read_session

    where = home()
    try:
        session = read_session(where)
    except FormatError:  # who works without lessons need not mend their files
        return None
    if session is None or (session.world, session.cluster) != ("kind", name):
        return None
    from labs.engine.kind.world import KindCluster

    return KindCluster(name, where)


def add_commands(cli: click.Group, name: Decorator, complete: Callable[..., list[str]]) -> None:
    """Give the group its commands about kind. `name`: the option that names a cluster; `complete`: lessons' names."""

    @cli.group()
    def kind() -> None:
        """Lessons on a real cluster: one that kind makes of containers (docs/kind.md)."""

    @kind.command(
        epilog="""\b
Examples:
  k8snet-lab kind create                       two nodes, kube-proxy with iptables
  k8snet-lab kind create kube-proxy            what that lesson needs
  k8snet-lab kind create --print >kind.yaml    only the configuration
"""
    )
    @name
    @click.argument("lab", required=False, metavar="[LAB]", shell_complete=complete)
    @click.option("--nodes", type=int, help="How many nodes; the first is the control plane. Default: 2.")
    @click.option("--proxy", type=click.Choice(PROXIES), help="kube-proxy's mode; none: without it. Default: iptables.")
    @click.option("--ip-family", type=click.Choice(IP_FAMILIES), help="Default: ipv4.")
    @click.option("--print", "only_print", is_flag=True, help="Print kind's configuration, and run nothing.")
    def create(name: str, lab: str | None, only_print: bool, **chosen: Any) -> None:
        """Make a cluster for lessons with kind, or print what kind needs where it is not installed."""
        from labs.engine.kind import create
        from labs.engine.kind.world import KindCluster
        from labs.engine.progress import home

        wanted = _wanted(lab, chosen)
        text = create.configuration(**wanted)
        if only_print or not create.is_installed():
            click.echo(text, nl=False)
            if not only_print:
                say(f"kind is not installed: {create.GET_KIND}")
            options = [word for key, value in wanted.items() for word in (f"--{key.replace('_', '-')}", str(value))]
            printed = shlex.join(["k8snet-lab", "kind", "create", *options, "--print"])
            say(f"to make the cluster: {printed} | {shlex.join(create.command(name))}")
            return
        cluster = KindCluster(name, home())
        create.run(cluster, text)
        say(f"then, for k8snet-trace on its nodes: {cluster.install_hint}")
        say(f"and to begin: sudo k8snet-lab start{f' {lab}' if lab else ''} --on kind{cluster.option}")

    @kind.command()
    @name
    @click.option("--print", "only_print", is_flag=True, help="Print the commands, and run nothing.")
    def install(name: str, only_print: bool) -> None:
        """Put k8snet-trace, and what lessons run on nodes, into the containers of all nodes: a minute each."""
        from labs.engine.kind import install
        from labs.engine.kind.world import KindCluster
        from labs.engine.progress import home

        cluster = KindCluster(name, home())
        if not only_print:
            install.install(cluster, say)
            return
        for container in cluster.containers:
            for line in install.by_hand(container):
                click.echo(line)


def _wanted(lab: str | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, else what the lesson requires. Raises UsageError for a lesson that is not for kind."""
    wanted = {key: value for key, value in chosen.items() if value is not None}
    if lab is None:
        return wanted
    from labs.engine.course import Course
    from labs.engine.kind.create import kube_proxy
    from labs.engine.kind.prepare import why_not

    lesson = Course.read().find(lab)
    problem = why_not(lesson)
    if problem is not None:
        raise UsageError(f"{lesson.id} can't run on kind: {problem}", hint=f"sudo k8snet-lab start {lesson.id}")
    needs = lesson.requires
    return {"nodes": needs.nodes, "proxy": kube_proxy(needs.proxy), "ip_family": needs.ip_family} | wanted
