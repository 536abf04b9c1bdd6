"""The command k8snet-lab: options in, one library call each, errors and exit codes out.

What belongs here: commands, printing, exit codes. What does not: anything another program could use.
Heavy imports wait until they are needed: what stands at the top of this file is paid for by every start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from labs import kindcommands, servicelbcommands
from labs.bench.names import DATAPATHS
from labs.cluster.options import CNIS, IP_FAMILIES, IPTABLES_VARIANTS, PROXY_MODES, ClusterOptions
from labs.lessoncommands import add_commands, complete_lesson
from labs.statusline import StatusLine
from tracer import __version__
from tracer.errors import FormatError, K8snetError
from tracer.program import add_completion, run, say

PROGRAM = "k8snet-lab"
DEFAULT_NAME = "k8snet"

EXAMPLES = """\b
Examples:
  sudo k8snet-lab up                                       two nodes, DNS, a Service with three pods: one second
  sudo k8snet-lab status                                   the map: who is where, with which address
  sudo k8snet-lab exec default/client -- curl -s http://lets-ship-it.fastapi:8000/
  sudo k8snet-lab exec node1 -- iptables-save -t nat       the rules that kube-proxy wrote
  export KUBECONFIG=$(k8snet-lab kubeconfig)               then kubectl works as on any cluster
  sudo k8snet-lab down                                     and nothing is left
"""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_CONTEXT, epilog=EXAMPLES)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """A Kubernetes cluster's network in miniature, on this machine, made of network namespaces.

    Everything is inside: the machine's own network, rules and files stay as they are, and `down` (or killing the
    supervisor) leaves nothing behind. Several clusters live side by side under different --names.
    """


def _complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from labs.cluster.ledger import names

    return [name for name in names() if name.startswith(incomplete)]


def _complete_target(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from labs.cluster import enter

    try:
        return [
            name for name in enter.targets(context.params.get("name") or DEFAULT_NAME) if name.startswith(incomplete)
        ]
    except K8snetError:
        return []


_name = click.option(
    "--name",
    default=DEFAULT_NAME,
    envvar="K8SNET_CLUSTER",
    show_default=True,
    show_envvar=True,
    shell_complete=_complete_name,
    help="Which cluster.",
)
_target = click.argument("target", metavar="NODE|NAMESPACE/POD", shell_complete=_complete_target)


@cli.command(
    epilog="""\b
Examples:
  sudo k8snet-lab up
  sudo k8snet-lab up --nodes 3 --ip-family dual
  sudo k8snet-lab up --name shop -f shop.yaml
"""
)
@_name
@click.option("--nodes", default=2, show_default=True, help="How many nodes; the first is the control plane.")
@click.option(
    "--proxy", type=click.Choice(PROXY_MODES), default="iptables", show_default=True, help="kube-proxy's mode."
)
@click.option("--cni", type=click.Choice(CNIS), default="routed", show_default=True, help="How pods reach other nodes.")
@click.option("--ip-family", type=click.Choice(IP_FAMILIES), default="ipv4", show_default=True)
@click.option(
    "--iptables",
    type=click.Choice(IPTABLES_VARIANTS),
    default="default",
    show_default=True,
    help="Which iptables the nodes use; default: the one that this machine's `iptables` is.",
)
@click.option(
    *("-f", "--filename", "filenames"),
    type=click.Path(allow_dash=True),
    multiple=True,
    metavar="FILE",
    help="Manifest to apply as well, YAML or JSON; - reads standard input. May be given several times.",
)
def up(name: str, filenames: tuple[str, ...], **options: Any) -> None:
    """Start the cluster, and return when it is ready. Does nothing when it is up already."""
    from labs.cluster import control, manifests

    texts = tuple(_read(filename) for filename in filenames)
    for filename, text in zip(filenames, texts, strict=True):
        manifests.parse(text, filename)  # a typing error should be told with its line, and before anything starts
    wanted = ClusterOptions(name=name, manifests=texts, **options)
    with StatusLine() as progress:
        started = control.up(wanted, progress.show)
    seconds = f" in {progress.seconds:.1f} s" if started else " already"
    say(f"cluster {name} is up{seconds}")
    for note in control.status(name)["notes"]:
        say(f"note: {note}")


@cli.command()
@_name
def down(name: str) -> None:
    """End the cluster and wait until nothing of it is left. Does nothing when there is none."""
    from labs.cluster import control

    say(f"cluster {name} is down" if control.down(name) else f"cluster {name} was not up")


@cli.command()
@_name
@click.option("-o", "--output", type=click.Choice(["map", "json"]), default="map", show_default=True)
def status(name: str, output: str) -> int:
    """Draw the map: nodes, pods, addresses, Services, health. Exits with 1 when something is not ready."""
    from labs.cluster import control

    document = control.status(name)
    if output == "json":
        import json

        click.echo(json.dumps(document, indent=2))
    else:
        from rich.console import Console

        from labs.cluster.statusmap import draw

        Console().print(draw(document))
    return 1 if document["unready"] else 0


@cli.command()
@_name
def kubeconfig(name: str) -> None:
    """Print the path of the cluster's kubeconfig: export KUBECONFIG=$(k8snet-lab kubeconfig)."""
    from labs.cluster import control

    kind = kindcommands.of_open_lesson(name)
    click.echo(control.kubeconfig(name) if kind is None else kind.kubeconfig)


@cli.command(
    "exec",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  sudo k8snet-lab exec default/client -- dig +short lets-ship-it.fastapi.svc.cluster.local
  sudo k8snet-lab exec node2 -- ip route
  sudo k8snet-lab exec client-host -- curl -s http://172.18.0.2:30080      from outside of the cluster
  echo hello | sudo k8snet-lab exec default/client -- nc 10.96.100.50 8000
""",
)
@_name
@_target
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, target: str, command: tuple[str, ...]) -> int:
    """Run a command on a node or in a pod.

    Standard input, output and error, the terminal, signals and the exit status are passed through; a command that
    ended by signal N gives 128 + N.
    """
    from labs.cluster import enter

    kind = kindcommands.of_open_lesson(name)
    return enter.run(enter.find(name, target), command) if kind is None else kind.execute(target, command)


@cli.command()
@_name
@_target
def shell(name: str, target: str) -> int:
    """Open a shell on a node or in a pod."""
    from labs.cluster import enter

    kind = kindcommands.of_open_lesson(name)
    if kind is not None:
        return kind.execute(target, kindcommands.SHELL)
    return enter.run(enter.find(name, target), [enter.find_shell()])


@cli.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  sudo k8snet-lab python default/client syn.py             scapy, as the pod
  sudo k8snet-lab python node1 chains.py KUBE-SERVICES     python-iptables, with a node's rules
""",
)
@_name
@_target
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def python(name: str, target: str, file: str, arguments: tuple[str, ...]) -> int:
    """Run a Python file of this machine on a node or in a pod.

    It runs with this installation's interpreter and libraries: scapy, pyroute2, python-iptables. All else is as with
    exec.
    """
    from labs.cluster import enter

    kind = kindcommands.of_open_lesson(name)
    if kind is not None:
        with Path(file).open("rb") as source:
            return kind.execute(target, [sys.executable, "-", *arguments], source)
    place = enter.find(name, target)
    with Path(file).open("rb") as source:
        # By its descriptor: the target sees files of its own, and perhaps an older one at this path.
        os.set_inheritable(source.fileno(), True)
        return enter.run(place, [sys.executable, f"/dev/fd/{source.fileno()}", *arguments])


@cli.group()
def proxy() -> None:
    """Look at what kube-proxy does."""


@proxy.command()
@click.option("--mode", type=click.Choice(["iptables", "nftables"]), default="iptables", show_default=True)
@click.option("--family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IP family.")
@click.option("--node", default="node1", show_default=True, help="The node that the proxy runs on.")
@click.option(
    *("-f", "--filename"),
    required=True,
    type=click.Path(dir_okay=False),
    help="Services, EndpointSlices, Nodes: JSON or YAML.",
)
def render(mode: str, family: str, node: str, filename: str) -> None:
    """Print the rules that kube-proxy would load for some objects. Needs no cluster and no root.

    iptables: input for iptables-restore, all tables; nftables: a script for nft.
    """
    from labs.cluster.proxy import iptables, nftables, objects

    plan = ClusterOptions(ip_family="dual").plan
    renderer = iptables.render if mode == "iptables" else nftables.render
    text = renderer(objects.load(filename), node_name=node, family=int(family), cluster_cidrs=plan.pod_networks)
    click.echo(text, nl=False)


@cli.group()
def bench() -> None:
    """Measure on this machine, in namespaces of the measurement's own."""


@bench.command(
    epilog="""\b
Examples:
  sudo k8snet-lab bench scale --quick                               up to 1,000 Services: a minute
  sudo k8snet-lab bench scale --quick --flows-only                  how long a new connection takes, and no more
  sudo k8snet-lab bench scale --output scale                        all: a quarter of an hour
  sudo k8snet-lab bench scale --datapath nftables --datapath ebpf   two of the four
  sudo k8snet-lab bench scale --quick -o json | jq '.results[] | [.datapath, .services, .new_flow_us.p50]'
"""
)
@click.option("--quick", is_flag=True, help="Up to 1,000 Services, and fewer runs: under two minutes.")
@click.option(
    "--flows-only", is_flag=True, help="Only loading and new flows: neither rates nor changes, half the time."
)
@click.option("--max", "most", type=int, metavar="N", help="The greatest number of Services, instead of 10,000.")
@click.option(
    "--datapath",
    "datapaths",
    multiple=True,
    metavar="NAME",
    type=click.Choice(DATAPATHS),
    help=f"Only this one, may be given several times: {', '.join(DATAPATHS)}.",
)
@click.option(
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write results.csv, results.json and the plots scale.png and scale.svg there. The same command goes on with "
    "a run that was interrupted.",
)
@click.option("-o", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True)
def scale(
    quick: bool,
    flows_only: bool,
    most: int | None,
    datapaths: tuple[str, ...],
    directory: Path | None,
    format_: str,
) -> None:
    """Compare what many Services cost in each datapath.

    With 10 to 10,000 Services of 3 endpoints: how long a new connection takes, and connections per second, keep-alive
    requests as a control, rules, memory, a full sync, and one endpoint's change. A full run takes 2 GB of memory.
    """
    import json

    from rich.console import Console

    from labs.bench import machine, plots, report, results
    from labs.bench import scale as measurement

    plan = measurement.plan(quick=quick, most=most, datapaths=datapaths, flows_only=flows_only)
    draws = directory is not None and _can_draw()
    journal = measurement.open_journal(plan, directory, machine.describe())
    try:
        with _Bar() as bar:
            measurement.run(plan, journal, bar)
    except KeyboardInterrupt:
        if directory is not None:
            say(f"interrupted; the same command goes on with what is in {directory}")
        raise
    found = results.collect(journal, plan.datapaths, plan.sizes, flows_only=flows_only)
    if format_ == "json":
        click.echo(json.dumps(report.document(journal.machine, found), indent=2))
    else:
        console = Console()
        console.print(machine.words(journal.machine), highlight=False, soft_wrap=True)
        for table in report.tables(found):
            console.print(table)
        for verdict in results.verdicts(found):
            console.print(report.verdict_line(verdict), highlight=False, soft_wrap=True)
        for line in results.not_won(found):
            console.print(f"where ebpf does not win: {line}", highlight=False, soft_wrap=True)
    if directory is not None:
        report.write(directory, journal.machine, found)
        if draws:
            plots.draw(found, machine.words(journal.machine), directory)


add_commands(cli, _name)
kindcommands.add_commands(cli, _name, complete_lesson)
servicelbcommands.add_commands(cli)
add_completion(cli, PROGRAM)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with the contract's code."""
    sys.exit(run(cli, PROGRAM, arguments))


def _can_draw() -> bool:
    """Whether there will be plots; if not, it is better said before a long run than after it."""
    from labs.bench import plots
    from tracer.errors import ToolMissing

    try:
        plots.require()
    except ToolMissing as error:
        say(f"note: {error.message}; {error.hint}")
        return False
    return True


class _Bar:
    """How far a measurement is, on standard error: a bar on a terminal, else nothing."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
        words = TextColumn("{task.description}", markup=False)
        console = Console(stderr=True)
        self._progress = Progress(*columns, words, console=console, disable=not console.is_terminal, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None)
        return self

    def start(self, seconds: float) -> None:
        self._progress.update(self._task, total=seconds)

    def show(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def advance(self, seconds: float) -> None:
        self._progress.advance(self._task, seconds)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _read(filename: str) -> str:
    try:
        if filename == "-":
            return sys.stdin.read()
        return Path(filename).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f"{filename}: {reason}") from error


if __name__ == "__main__":
    main()
