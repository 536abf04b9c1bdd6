"""k8snet-trace doctor: tries each thing that a trace needs or profits from; tells what works, and what mends the rest.

What belongs here: the list of checks, running them, whether a trace is possible at all, the table. What does not: how
each thing is tried (`tracer.checks`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from tracer import checks
from tracer.errors import K8snetError
from tracer.escape import escape

BACKENDS = ("fentry", "kprobe", "tracepoint", "conntrack")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check. detail: what was seen, or why it failed; fix: the one command that mends it, or None."""

    check: str
    ok: bool
    detail: str
    fix: str | None = None


def all_checks(kubeconfig: str | None = None) -> list[tuple[str, Callable[[], str]]]:
    """Every check by name, in the order in which one thing builds on another; each returns what it saw or raises."""
    return [
        ("root", checks.root),
        ("bcc", checks.bcc),
        ("kernel BTF", checks.kernel_btf),
        ("BPF ring buffer", checks.ring_buffer),
        ("raw tracepoints", checks.raw_tracepoints),
        *((f"backend {name}", partial(checks.backend, name)) for name in BACKENDS),
        ("nf_conntrack", checks.nf_conntrack),
        ("conntrack netlink", checks.conntrack_netlink),
        ("cgroup v2", checks.cgroup2),
        ("network namespace", checks.network_namespace),
        ("iptables-legacy-save", partial(checks.tool, "iptables-legacy-save", package="iptables")),
        ("iptables-nft-save", partial(checks.tool, "iptables-nft-save", package="iptables")),
        ("nft", partial(checks.tool, "nft", "list", "tables", package="nftables")),
        ("Kubernetes API", partial(checks.kubernetes_api, kubeconfig)),
    ]


def examine(kubeconfig: str | None = None, wanted: Iterable[str] | None = None) -> list[Result]:
    """Run all checks, or those named in `wanted`. Takes a second or two: every backend is compiled and attached."""
    names = None if wanted is None else set(wanted)
    return [_run(name, check) for name, check in all_checks(kubeconfig) if names is None or name in names]


def can_trace(results: Sequence[Result]) -> bool:
    """Whether the live trace has a backend to run with."""
    return any(result.ok for result in results if result.check.startswith("backend "))


def as_json(results: Sequence[Result]) -> str:
    """One document: [{check, ok, detail, fix}]."""
    return json.dumps([asdict(result) for result in results], indent=2)


def as_table(results: Sequence[Result], *, width: int, colour: bool) -> str:
    """A table `width` columns wide, and a verdict below it."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("Check", "", "Detail", "Fix"):
        table.add_column(title, overflow="fold", no_wrap=title in ("Check", ""))
    for result in results:
        mark = Text("ok", style="green") if result.ok else Text("no", style="bold red")
        detail = "\n".join(map(escape, result.detail.splitlines()))
        table.add_row(Text(result.check), mark, Text(detail), Text(escape(result.fix or "")))
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, no_color=not colour)
    console.print(table)
    console.print(Text(f"\n{verdict(results)}"))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def verdict(results: Sequence[Result]) -> str:
    """One sentence: which backend a trace would take, or that there is none."""
    working = [name for name in BACKENDS if any(each.ok for each in results if each.check == f"backend {name}")]
    if not working:
        return "The live trace can't run here; --replay can."
    processes = " Processes are unknown with it." if working[0] == "conntrack" else ""
    return f"The live trace takes the backend {working[0]}.{processes}"


def _run(name: str, check: Callable[[], str]) -> Result:
    try:
        return Result(name, True, check())
    except K8snetError as error:
        return Result(name, False, error.message, error.hint)
    except Exception as error:  # a check that breaks must not hide the others
        return Result(name, False, f"{type(error).__name__}: {error}")
