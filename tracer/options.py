"""The options of the live trace, in the groups in which help shows them.

What belongs here: names, types and help of options. What does not: what they do (`tracer.cli` hands them on).
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from typing import Any

import click

from tracer.filters import Filter

BACKENDS = ("auto", "fentry", "kprobe", "tracepoint", "conntrack")

F = Callable[..., Any]


class Size(click.ParamType[int]):
    """A number of bytes such as 65536, 64K or 1M, that makes a power of two of memory pages."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click.ParamType."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,12})([KM]?)", value, re.ASCII | re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size: 65536, 64K and 1M are", param, ctx)
        size = int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2].upper()]
        pages, rest = divmod(size, resource.getpagesize())
        if rest or pages == 0 or pages & (pages - 1):
            self.fail(f"{value} is no power of two of {resource.getpagesize()}-byte pages", param, ctx)
        return size


class Option(click.Option):
    """An option that knows its heading in help."""

    def __init__(self, *args: Any, heading: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


def _option(heading: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    return click.option(*names, cls=Option, heading=heading, **kwargs)


_FILE = click.Path(dir_okay=False)

_OPTIONS = (
    _option(
        "Filters",
        "--namespace",
        "namespaces",
        multiple=True,
        metavar="NAME",
        help="Source, destination or backend is in it.",
    ),
    _option("Filters", "--pod", "pods", multiple=True, metavar="[NAMESPACE/]NAME", help="Source or backend."),
    _option("Filters", "--service", "services", multiple=True, metavar="[NAMESPACE/]NAME", help="What was asked for."),
    _option(
        "Filters",
        "--node",
        "nodes",
        multiple=True,
        metavar="NAME",
        help="Where it happens. By default anywhere; in a node that shares its kernel with others (kind), that node.",
    ),
    _option("Filters", "--comm", "comms", multiple=True, metavar="NAME", help="Command name of the process."),
    _option(
        "Filters",
        "--pid",
        "pids",
        multiple=True,
        type=click.IntRange(min=1),
        metavar="PID",
        help="Process id, as the machine's first pid namespace counts.",
    ),
    _option(
        "Filters",
        "--port",
        "ports",
        multiple=True,
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Port asked for, or the backend's.",
    ),
    _option(
        "Filters",
        "--protocol",
        "protocols",
        multiple=True,
        type=click.Choice(["TCP", "UDP", "SCTP"], case_sensitive=False),
        help="Transport protocol.",
    ),
    _option("Filters", "--failed", is_flag=True, help="Only what did not get through."),
    _option(
        "Output",
        "-o",
        "--output",
        type=click.Choice(["line", "json"]),
        default="line",
        show_default=True,
        help="One line, or one JSON object, for each connection.",
    ),
    _option("Output", "--count", type=click.IntRange(min=1), metavar="N", help="End after N records."),
    _option("Output", "--duration", type=click.FloatRange(min=0), metavar="SECONDS", help="End after a time."),
    _option("Output", "--record", type=_FILE, metavar="FILE", help="Write what is shown to FILE too, as JSON lines."),
    _option("Output", "--ready-file", type=_FILE, metavar="PATH", help="Create PATH once every hook is attached."),
    # For who starts a trace beside a cluster that is still to come (`labs.engine.recorder`).
    _option("Output", "--begin-file", type=_FILE, hidden=True, help="Begin when it is there: the kubeconfig's path."),
    _option("Source", "--rewrites-expected", is_flag=True, hidden=True, help="Programs at sockets are to come."),
    _option(
        "Source",
        "--replay",
        type=click.Path(dir_okay=False, allow_dash=True),
        metavar="FILE",
        help="Show a recording (- is standard input). Needs neither root nor BPF.",
    ),
    _option(
        "Source",
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="How the kernel is watched.",
    ),
    _option(
        "Source",
        "--ring-buffer",
        type=Size(),
        metavar="SIZE",
        help="Bytes of the buffer between kernel and tracer: 64K, 1M, …",
    ),
    _option("Source", "--show-bpf", is_flag=True, help="Print the C that would be loaded, and exit."),
    _option("Names", "--kubeconfig", type=_FILE, metavar="PATH", help="Kubernetes API to ask for names."),
    _option("Names", "--no-names", is_flag=True, help="Addresses only: ask neither the Kubernetes API nor the rules."),
)


def trace_options(command: F) -> F:
    """Give a command all options of the live trace."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wanted(options: dict[str, Any]) -> Filter:
    """The filter that the options ask for."""
    fields = Filter.__dataclass_fields__
    return Filter(**{name: value for name, value in options.items() if name in fields})


class TraceGroup(click.Group):
    """A group whose help shows options under their headings, and examples as they were written."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Command."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                sections.setdefault(getattr(parameter, "heading", "Options"), []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
        self.format_commands(ctx, formatter)
