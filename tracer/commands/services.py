"""k8snet-trace services: the Service map of this node as the kernel holds it, or as saved rules do.

What belongs here: options, and which form the answer takes. What does not: the map (`tracer.rules.services`), the table
(`tracer.service_table`).
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from tracer.commands.rules_source import chosen_rules, netns_path, rules_options
from tracer.errors import K8snetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.rules.model import RuleSet
    from tracer.rules.services import ServiceMap, ServicePort

EXAMPLES = """\b
Examples:
  sudo k8snet-trace services                              all Services, as the kernel's rules have them
  sudo k8snet-trace services fastapi/lets-ship-it         one of them
  sudo k8snet-trace services 'kube-*/*' --netns node2     those of some namespaces, on another node of this machine
  sudo k8snet-trace services --watch                      what changes, in words, as kube-proxy writes it
  k8snet-trace services --rules nat.save -o json          from what iptables-save printed, without root
"""


@click.command(epilog=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[[NAMESPACE/]NAME]...")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or one JSON document.",
)
@rules_options
@click.option("--watch", is_flag=True, help="Print what changes, a line each, when the rules change. Ctrl-C ends it.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="With --watch: end after N lines.")
@click.option("--duration", type=click.FloatRange(min=0), metavar="SECONDS", help="With --watch: end after a time.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False),
    metavar="PATH",
    help="With --watch: create PATH once the rules were read.",
)
def services(
    names: tuple[str, ...],
    output: str,
    rules: tuple[str, ...],
    netns: str | None,
    kubeconfig: str | None,
    watch: bool,
    **limits: Any,
) -> None:
    """Show every Service: its addresses, its endpoints and their shares.

    As kube-proxy wrote them into the kernel's rules, in any of its modes: what packets meet, whatever the Kubernetes
    API says. A NAME may be a shell pattern. With --watch, -o json prints one object a line.
    """
    from tracer.sinks import ReaderGone

    with contextlib.suppress(ReaderGone):
        if watch:
            _watch(names, output, rules, netns, kubeconfig, **limits)
        elif any(value is not None for value in limits.values()):
            raise UsageError("--count, --duration and --ready-file belong to --watch")
        else:
            _show(names, output, chosen_rules(rules, netns, kubeconfig))


def _show(names: tuple[str, ...], output: str, rules: RuleSet) -> None:
    from tracer.rules.kubeproxy import service_map
    from tracer.terminal import writer

    for note in rules.notes:
        _note(note)
    chosen = _named(service_map(rules), names)
    if not chosen and output == "table":
        _note("kube-proxy has no rules for any Service here")
    else:
        writer().write("".join(_json(chosen) if output == "json" else _table(chosen)))


def _watch(
    names: tuple[str, ...],
    output: str,
    rules: tuple[str, ...],
    netns: str | None,
    kubeconfig: str | None,
    *,
    count: int | None,
    duration: float | None,
    ready_file: str | None,
) -> None:
    from tracer import service_watch
    from tracer.names.services import ServiceNames
    from tracer.rules.watching import Watching
    from tracer.session import write_ready_file
    from tracer.sinks import Interrupted
    from tracer.stop import Stop
    from tracer.terminal import writer

    if rules:
        raise UsageError("saved rules do not change: --watch is for the kernel's", hint="leave --rules out")

    def ready(found: ServiceMap) -> None:
        if ready_file is not None:
            write_ready_file(ready_file)
        if sys.stderr is not None and sys.stderr.isatty():
            _note(f"watching {len(found.services)} Service ports; Ctrl-C ends it")

    with (
        Stop() as stop,
        contextlib.suppress(Interrupted),
        contextlib.closing(ServiceNames(kubeconfig)) as asking,
        contextlib.closing(Watching(netns_path(rules, netns), asking.names)) as watching,
    ):
        service_watch.watch(
            watching,
            writer(stop),
            names=names,
            as_json=output == "json",
            limits=service_watch.Limits(count, duration),
            stopped=stop,
            on_ready=ready,
        )


def _named(found: ServiceMap, names: tuple[str, ...]) -> Sequence[ServicePort]:
    """The Services of these names, or all. Raises K8snetError for a name without any."""
    if not names:
        return found.services
    chosen: set[int] = set()
    for name in names:
        named = found.named(name)
        if not named:
            near = found.nearest(name)
            raise K8snetError(
                f"the rules have no Service {name}", hint=f"the nearest: {', '.join(near)}" if near else None
            )
        chosen.update(map(id, named))
    return [service for service in found.services if id(service) in chosen]


def _json(chosen: Sequence[ServicePort]) -> Iterator[str]:
    """One document, with a line for each Service port."""
    import json

    separator = "[\n"
    for service in chosen:
        yield separator + json.dumps(service.to_json())
        separator = ",\n"
    yield "\n]\n" if chosen else "[]\n"


def _table(chosen: Sequence[ServicePort]) -> Iterator[str]:
    from tracer.lines import Brush
    from tracer.service_table import table
    from tracer.terminal import coloured, size

    brush = Brush(colour=coloured())
    return (brush.paint(line) + "\n" for line in table(chosen, size()[0]))


def _note(text: str) -> None:
    from tracer.escape import escape

    click.echo(f"note: {escape(text)}", err=True)
