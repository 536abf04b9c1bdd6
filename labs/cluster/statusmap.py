"""A running cluster as a map for the terminal: what `k8snet-lab status` draws. Pure: a document in, something for rich
out.

What belongs here: how the document of `labs.cluster.control.status` looks to a person. What does not: asking for it,
printing.
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracer.escape import escape

GOOD, BAD, DIM, NAME = "green", "bold red", "dim", "bold"


def draw(document: dict[str, Any]) -> RenderableType:
    """The whole map: nodes with their pods, then Services with what is behind them."""
    parts: list[RenderableType] = [_headline(document)]
    parts += [_node(node, document["pods"]) for node in document["nodes"]]
    parts.append(_services(document["services"]))
    parts += [Text(f"note: {escape(note)}", style=DIM) for note in document["notes"]]
    return Group(*parts)


def _headline(document: dict[str, Any]) -> Text:
    options = document["options"]
    text = Text.assemble(("● " if document["ready"] and not document["unready"] else "○ "), (document["name"], NAME))
    text.stylize(GOOD if not document["unready"] else BAD, 0, 1)
    text.append(f"  kube-proxy {options['proxy']} · cni {options['cni']} · {options['ip_family']}", style=DIM)
    for reason in document["unready"]:
        text.append(f"\n  {escape(reason)}", style=BAD)
    return text


def _node(node: dict[str, Any], pods: list[dict[str, Any]]) -> Panel:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(min_width=1, no_wrap=True)
    table.add_column(style=NAME, ratio=2, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(min_width=9, no_wrap=True)
    table.add_column(style=DIM, no_wrap=True)
    mine = [pod for pod in pods if pod["node"] == node["name"]]
    for pod in sorted(mine, key=lambda pod: (pod["host_network"], pod["namespace"], pod["name"])):
        table.add_row(
            Text("●", style=GOOD) if pod["ready"] else Text("○", style=BAD),
            escape(f"{pod['namespace']}/{pod['name']}"),
            "node's network" if pod["host_network"] else ", ".join(pod["addresses"]),
            f"pid {pod['pid']}" if pod["pid"] else "-",
            f"restarted {pod['restarts']}×" if pod["restarts"] else "",
        )
    title = f"{node['name']}  {', '.join(node['addresses'])}  pods {', '.join(node['pod_cidrs'])}  pid {node['pid']}"
    return Panel(table, title=Text(title, style=NAME), title_align="left", border_style=DIM)


def _services(services: list[dict[str, Any]]) -> Panel:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for style in (NAME, None, None):
        table.add_column(style=style, overflow="fold")
    for service in services:
        addresses = ", ".join(service["cluster_ips"]) or service["type"]
        ports = " ".join(map(_port, service["ports"]))
        table.add_row(escape(f"{service['namespace']}/{service['name']}"), f"{addresses} {ports}", _behind(service))
    return Panel(table, title=Text("Services", style=NAME), title_align="left", border_style=DIM)


def _port(port: dict[str, Any]) -> str:
    node_port = f" (node port {port['node_port']})" if port["node_port"] else ""
    return f"{port['port']}/{port['protocol']}{node_port}"


def _behind(service: dict[str, Any]) -> Text:
    if not service["endpoints"]:
        return Text("no endpoints", style=BAD)
    text = Text("→ ")
    for index, endpoint in enumerate(service["endpoints"]):
        name = ", ".join(endpoint["addresses"])
        text.append((" " if index else "") + escape(name), style=None if endpoint["ready"] else BAD)
    return text
