"""k8snet-trace services: the Service map of this node as the kernel holds it, or as saved rules do.

What belongs here: options, and which form the answer takes. What does not: the map (`tracer.rules.services`), the table
(`tracer.service_table`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from tracer.commands.rules_source import chosen_rules, rules_options
from tracer.errors import K8snetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.rules.services import ServiceMap, ServicePort

EXAMPLES = """\b
Examples:
  sudo k8snet-trace services                              all Services, as the kernel's rules have them
  sudo k8snet-trace services fastapi/lets-ship-it         one of them
  sudo k8snet-trace services 'kube-*/*' --netns node2     those of some namespaces, on another node of this machine
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
def services(names: tuple[str, ...], output: str, rules: tuple[str, ...], netns: str | None) -> None:
    """Show every Service: its addresses, its endpoints and their shares.

    As kube-proxy wrote them into the kernel's rules, in any of its modes: what packets meet, whatever the Kubernetes
    API says. A NAME may be a shell pattern.
    """
    from tracer.rules.kubeproxy import service_map
    from tracer.sinks import ReaderGone
    from tracer.terminal import writer

    read = chosen_rules(rules, netns)
    for note in read.notes:
        _note(note)
    chosen = _named(service_map(read), names)
    if not chosen and output == "table":
        _note("kube-proxy has no rules for any Service here")
        return
    with contextlib.suppress(ReaderGone):
        writer().write("".join(_json(chosen) if output == "json" else _table(chosen)))


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
