"""k8snet-trace probe DST, and k8snet-trace probe dns NAME: crafted packets, and where each of them really went.

What belongs here: options, and which form the answer takes. What does not: probing (`tracer.probe`).
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from tracer.errors import NotRoot

if TYPE_CHECKING:
    from tracer.probe.conduct import Wishes
    from tracer.render import Span

MAX_COUNT, MAX_RATE = 10_000, 1_000.0

EXAMPLES = """\b
Examples:
  sudo k8snet-trace probe fastapi/lets-ship-it:http           30 flows from this node
  sudo k8snet-trace probe fastapi/lets-ship-it:http --from default/client --count 300
  sudo k8snet-trace probe 10.96.0.10:53/udp --from node2      from a node that is a container
  sudo k8snet-trace probe dns web.shop.svc.cluster.local --server 10.96.0.10
"""
DNS_EXAMPLES = """\b
Examples:
  sudo k8snet-trace probe dns web.shop.svc.cluster.local --server 10.96.0.10 --from default/client
  sudo k8snet-trace probe dns _http._tcp.web.shop.svc.cluster.local --type SRV --server 10.96.0.10
  sudo k8snet-trace probe dns example.org --server 10.96.0.10 --no-rd -o json
"""

F = Callable[..., Any]


def _shared(default_count: int, what: str) -> Callable[[F], F]:
    """The options that both commands have."""
    options = (
        click.option(
            "--from",
            "origin",
            metavar="POD|NETNS",
            help="Send from a pod of this machine (NAMESPACE/POD), a network namespace (name, process id or path) or "
            "a node in a container (its hostname). Default: from here.",
        ),
        click.option(
            "--count",
            type=click.IntRange(1, MAX_COUNT),
            default=default_count,
            show_default=True,
            metavar="N",
            help=f"{what}, up to {MAX_COUNT:,}.",
        ),
        click.option(
            "--rate",
            type=click.FloatRange(0.1, MAX_RATE),
            default=100.0,
            show_default=True,
            metavar="N",
            help="New flows a second.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0.01, 60),
            default=1.0,
            show_default=True,
            metavar="SECONDS",
            help="How long each waits for an answer.",
        ),
        click.option("--kubeconfig", type=click.Path(dir_okay=False), metavar="PATH", help="Kubernetes API for names."),
        click.option("--no-names", is_flag=True, help="Addresses only."),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            default="table",
            show_default=True,
            help="For people, or one JSON document.",
        ),
    )

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_flow_options = _shared(30, "How many flows")
_ipv6 = click.option("-6", "--ipv6", is_flag=True, help="The IPv6 address of a Service that has both.")


class DestinationCommand(click.Command):
    """The command of the group that is meant where none is named: it goes by the group's own name."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """See click.Command."""
        assert parent is not None
        return super().make_context(parent.info_name, args, parent.parent, **extra)


class ProbeGroup(click.Group):
    """A group whose first word may be a destination in a command's place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click.Command. Completion of the first word is the group's own: it knows commands and options."""
        if not (args and args[0] in self.commands) and (args or not ctx.resilient_parsing):
            args = ["to", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ProbeGroup)
@_flow_options
@_ipv6
def probe(**options: Any) -> None:
    """Send crafted packets, and show which backend each one reached."""


@probe.command("to", cls=DestinationCommand, hidden=True, epilog=EXAMPLES)
@click.argument("destination", metavar="DST")
@_flow_options
@_ipv6
def to(destination: str, **options: Any) -> None:
    """Send crafted packets, each a new flow, and show which backend each one reached.

    DST is IP:PORT, [IPv6]:PORT or NAMESPACE/SERVICE:PORT, with /udp behind it where it is not TCP. TCP flows are SYNs,
    taken back by a RST; UDP flows are one datagram. The backends observed stand beside those that the rules promise,
    with a chi-square test. For DNS queries see k8snet-trace probe dns --help.
    """
    from tracer.probe.conduct import probe as conduct
    from tracer.probe.table import lines
    from tracer.stop import Stop
    from tracer.terminal import size

    wishes = _wishes(options, 6 if options["ipv6"] else None)
    with Stop() as stop, _hinting(destination):
        report = conduct(destination, wishes, stop)
    _print(options["output"], report.to_json, lambda: lines(report, size()[0]))


@probe.command("dns", epilog=DNS_EXAMPLES)
@click.argument("name")
@click.option(
    "--server", required=True, metavar="IP[:PORT]", help="Whom to ask: an address, or NAMESPACE/SERVICE:PORT."
)
@click.option("--type", "kind", default="A", show_default=True, metavar="TYPE", help="A, AAAA, SRV, PTR, TXT, …")
@click.option("--rd/--no-rd", "recursion", default=None, help="Only with, or without, the recursion-desired bit.")
@_shared(1, "How many queries of each kind")
def ask(name: str, server: str, kind: str, recursion: bool | None, **options: Any) -> None:
    """Send DNS queries in flows of their own, and show the answers' header flags and who answered.

    Two queries are sent, one with the recursion-desired bit and one without, unless --rd or --no-rd chooses. NAME is
    asked as given: nothing is appended to it.
    """
    from tracer.probe.question_table import lines
    from tracer.probe.questions import ask as conduct
    from tracer.stop import Stop
    from tracer.terminal import size

    kinds = (True, False) if recursion is None else (recursion,)
    with Stop() as stop, _hinting("dns", name, "--server", server):
        report = conduct(name, kind, kinds, server, _wishes(options), stop)
    _print(options["output"], report.to_json, lambda: lines(report, size()[0]))


def _wishes(options: dict[str, Any], family: int | None = None) -> Wishes:
    from tracer.probe.conduct import Wishes
    from tracer.probe.run import Plan

    plan = Plan(options["count"], options["rate"], options["timeout"])
    return Wishes(plan, options["origin"], family, options["kubeconfig"], not options["no_names"])


@contextlib.contextmanager
def _hinting(*words: str) -> Iterator[None]:
    """Have the hint of NotRoot say the whole command."""
    try:
        yield
    except NotRoot as error:
        error.hint = f"sudo k8snet-trace probe {shlex.join(words)}"
        raise


def _print(output: str, document: Callable[[], Any], lines: Callable[[], Iterable[tuple[Span, ...]]]) -> None:
    from tracer.lines import Brush
    from tracer.sinks import ReaderGone
    from tracer.terminal import coloured, writer

    with contextlib.suppress(ReaderGone):
        if output == "json":
            writer().write(json.dumps(document(), indent=2) + "\n")
        else:
            brush = Brush(colour=coloured())
            writer().write("".join(brush.paint(line) + "\n" for line in lines()))
