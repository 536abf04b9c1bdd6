"""k8snet-trace explain: where a packet would go, rule by rule.

What belongs here: options, and which form the answer takes. What does not: the answer (`tracer.rules.explain`), which
destination is meant (`tracer.rules.asked`), words for people (`tracer.explanation`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from tracer.commands.rules_source import chosen_rules, netns_path, rules_options
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.rules.explain import Explanation

EXAMPLES = """\b
Examples:
  sudo k8snet-trace explain 10.96.0.10:53/udp                    from a process on this node
  sudo k8snet-trace explain fastapi/lets-ship-it:http --source 10.244.0.7
  sudo k8snet-trace explain 172.18.0.2:30080 --netns node2 -v    and the rules that were passed over
  k8snet-trace explain '[fd00::1]:443' --rules ip6tables.save -o json
"""


@click.command(epilog=EXAMPLES)
@click.argument("destinations", nargs=-1, required=True, metavar="DST...")
@click.option("--source", metavar="IP", help="Where the packet comes from. Default: a process on this node.")
@click.option("-v", "--verbose", is_flag=True, help="Also show the rules passed over, and all that is alike.")
@click.option("-o", "--output", type=click.Choice(["tree", "json"]), default="tree", show_default=True)
@click.option("--node-ip", "node_ips", multiple=True, metavar="IP", help="With --rules: an address of the node's own.")
@click.option("--in-interface", metavar="NAME", help="With --rules: the device by which it comes in.")
@click.option("--out-interface", metavar="NAME", help="With --rules: the device by which it would leave.")
@rules_options
def explain(
    destinations: tuple[str, ...],
    source: str | None,
    verbose: bool,
    output: str,
    node_ips: tuple[str, ...],
    in_interface: str | None,
    out_interface: str | None,
    rules: tuple[str, ...],
    netns: str | None,
    kubeconfig: str | None,
) -> None:
    """Tell what the rules do with a packet to DST.

    The packet is the first of a new flow. It goes through all hooks in the kernel's order, whoever wrote the rules, and
    each rule that takes it is told, with the share of packets that it takes. DST is IP:PORT, [IPv6]:PORT or
    NAMESPACE/SERVICE:PORT; /udp or /sctp behind it where it is not TCP.
    """
    from tracer.destination import parse
    from tracer.rules.asked import Surroundings, answers

    asked = [parse(text) for text in destinations]
    if not rules and (node_ips or in_interface or out_interface):
        raise UsageError("--node-ip, --in-interface and --out-interface are for saved rules: the kernel knows its own")
    path = netns_path(rules, netns)
    around = Surroundings.told(node_ips, in_interface, out_interface) if rules else Surroundings.of(path)
    with contextlib.closing(around):
        found = answers(chosen_rules(rules, netns, kubeconfig, source), asked, source, around)

    from tracer.sinks import ReaderGone
    from tracer.terminal import writer

    with contextlib.suppress(ReaderGone):
        writer().write("".join(_json(found) if output == "json" else _trees(found, verbose)))


def _json(found: Sequence[Explanation]) -> Iterator[str]:
    """One document, on one line, for each destination."""
    import json

    return (json.dumps(told.to_json()) + "\n" for told in found)


def _trees(found: Sequence[Explanation], verbose: bool) -> Iterator[str]:
    from tracer.explanation import lines
    from tracer.lines import Brush
    from tracer.terminal import coloured, size

    brush = Brush(colour=coloured())
    for number, told in enumerate(found):
        if number:
            yield "\n"
        for line in lines(told, size()[0], verbose=verbose):
            yield brush.paint(line) + "\n"
