"""A running cluster as a map for the terminal: what `k8snet-lab status` draws. Pure: a document in, something for rich
out.

What belongs here: how the document of `labs.cluster.control.status` looks to a person. What does not: asking for it,
printing.
"""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracer.escape import escape

GOOD, BAD, DIM, NAME = "green", "bold red", "dim", "bold"
MOST_ENDPOINTS = 6  # of one Service; the others are counted


def draw(document: dict[str, Any]) -> RenderableType:
    """The whole map: nodes with their pods, the host outside, Services with what is behind them, what runs it all."""
    parts: list[RenderableType] = [_headline(document)]
    parts += [_node(node, document) for node in document["nodes"]]
    parts += [_host(host) for host in document["hosts"]]
    parts.append(_services(document["services"]))
    if document["components"]:
        parts.append(_panel(_components(document["components"]), "Components"))
    parts += [Text(f"note: {escape(note)}", style=DIM) for note in document["notes"]]
    return Group(*parts)


def _headline(document: dict[str, Any]) -> Text:
    options = document["options"]
    text = Text.assemble(("● " if document["ready"] and not document["unready"] else "○ "), (document["name"], NAME))
    text.stylize(GOOD if not document["unready"] else BAD, 0, 1)
    about = ("proxy", options["proxy"]), ("cni", options["cni"]), ("ip family", options["ip_family"])
    text.append(f"  {' · '.join(f'{name} {value}' for name, value in about)}", style=DIM)
    for reason in document["unready"]:
        text.append(f"\n  {escape(reason)}", style=BAD)
    return text


def _panel(inside: RenderableType, title: str, below: str | None = None) -> Panel:
    return Panel(
        inside,
        title=Text(title, style=NAME),
        title_align="left",
        subtitle=None if below is None else Text(below),
        subtitle_align="left",
        border_style=DIM,
    )


def _light(well: bool) -> Text:
    return Text("●", style=GOOD) if well else Text("○", style=BAD)


def _node(node: dict[str, Any], document: dict[str, Any]) -> Panel:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(min_width=1, no_wrap=True)
    table.add_column(style=NAME, ratio=2, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(min_width=9, no_wrap=True)
    table.add_column(style=DIM, no_wrap=True)
    mine = [pod for pod in document["pods"] if pod["node"] == node["name"]]
    for pod in sorted(mine, key=lambda pod: (pod["host_network"], pod["namespace"], pod["name"])):
        table.add_row(
            _light(pod["ready"]),
            escape(f"{pod['namespace']}/{pod['name']}"),
            "node's network" if pod["host_network"] else ", ".join(pod["addresses"]),
            f"pid {pod['pid']}" if pod["pid"] else "-",
            f"restarted {pod['restarts']}×" if pod["restarts"] else "",
        )
    for pod in document["control_plane"]:
        if pod["node"] == node["name"]:
            name = escape(f"{pod['namespace']}/{pod['name']}")
            table.add_row(_light(pod["ready"]), name, "node's network", "supervisor", "")
    title = f"{node['name']}  {', '.join(node['addresses'])}  pid {node['pid']}"
    return _panel(table, title, f"pods {', '.join(node['pod_cidrs'])}")


def _host(host: dict[str, Any]) -> Panel:
    pid = f"pid {host['pid']}" if host["pid"] else "no process"
    inside = Text("outside of the cluster: reaches node ports, external IPs and LoadBalancer IPs", style=DIM)
    return _panel(inside, f"{host['name']}  {', '.join(host['addresses'])}  {pid}")


def _services(services: list[dict[str, Any]]) -> Panel:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style=NAME, overflow="fold")
    table.add_column(overflow="fold", min_width=14)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for service in services:
        name = escape(f"{service['namespace']}/{service['name']}")
        table.add_row(name, _addresses(service), _ports(service), _behind(service))
    return _panel(table, "Services")


def _addresses(service: dict[str, Any]) -> Text:
    """The type, where it is not ClusterIP, and all addresses."""
    lines = [] if service["type"] == "ClusterIP" else [Text(service["type"], style=DIM)]
    for kind, field in (("", "cluster_ips"), (" ext", "external_ips"), (" LB", "load_balancer_ips")):
        for address in service.get(field) or ():
            lines.append(Text("headless", style=DIM) if address == "None" else Text.assemble(address, (kind, DIM)))
    if service["type"] == "LoadBalancer" and not service.get("load_balancer_ips"):
        lines.append(Text("no LB address yet", style=BAD))
    return Text("\n").join(lines)


def _ports(service: dict[str, Any]) -> Text:
    return Text("\n").join(_port(port) for port in service["ports"])


def _port(port: dict[str, Any]) -> Text:
    text = Text(f"{port['port']}/{port['protocol']}")
    if port["target_port"] != port["port"]:
        text.append(f" → {escape(str(port['target_port']))}", style=DIM)
    if port["node_port"]:
        text.append(f"\n  node port {port['node_port']}", style=DIM)
    return text


def _behind(service: dict[str, Any]) -> Text:
    """How many endpoints are ready of how many, and the first of them."""
    endpoints = service["endpoints"]
    if service["type"] == "ExternalName":
        return Text("")
    if not endpoints:
        return Text("no endpoints", style=BAD)
    ready, total = count_endpoints(service)
    text = Text.assemble((f"{ready}/{total}", GOOD if ready == total else BAD))
    in_order = sorted(endpoints, key=lambda endpoint: ":" in endpoint["addresses"][0])  # IPv4 first
    for endpoint in in_order[:MOST_ENDPOINTS]:
        name = escape(", ".join(endpoint["addresses"]))
        text.append(" ").append(name, style=None if endpoint["ready"] else BAD)
    if len(endpoints) > MOST_ENDPOINTS:
        text.append(f" and {len(endpoints) - MOST_ENDPOINTS} more", style=DIM)
    return text


def count_endpoints(service: dict[str, Any]) -> tuple[int, int]:
    """How many of a Service's endpoints are ready, and how many there are; a pod with two addresses is one."""
    found: dict[Any, bool] = {}
    for endpoint in service["endpoints"]:
        found.setdefault(endpoint["pod"] or tuple(endpoint["addresses"]), bool(endpoint["ready"]))
    return sum(found.values()), len(found)


def _components(components: list[dict[str, Any]]) -> RenderableType:
    """One word for each that runs; who has failed says how often, and of what the last time."""
    words = [Text.assemble(_light(component["running"]), f" {component['name']}") for component in components]
    failed = [
        Text(escape(f"{component['name']} failed {component['failures']}×: {component['error']}"), style=BAD)
        for component in components
        if component["failures"]
    ]
    return Group(Columns(words, padding=(0, 3)), *failed)
