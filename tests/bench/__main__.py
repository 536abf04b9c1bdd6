"""`scripts/bench`: one subcommand for each measurement."""

from __future__ import annotations

from pathlib import Path

import click

from tests.bench import cluster as cluster_bench
from tests.bench import hooks as hooks_bench
from tests.bench import overhead as overhead_bench
from tests.bench import rules as rules_bench
from tests.bench import scale as scale_bench
from tests.bench import switching as switching_bench
from tests.bench.output import output_options, tell


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure on this machine, in namespaces of the measurement's own."""


@bench.command()
@click.option("--pairs", default=7, show_default=True, help="Runs with each tool, each between two without.")
@click.option("--seconds", default=4.0, show_default=True, help="Length of one run.")
@click.option("--tool", "tools", multiple=True, type=click.Choice(sorted(overhead_bench.TOOLS)), help="Only these.")
@output_options
def overhead(pairs: int, seconds: float, tools: tuple[str, ...], output: str, path: Path | None) -> None:
    """What watching costs: short HTTP connections through a ClusterIP, with and without each tool."""
    results = overhead_bench.measure(tools or tuple(overhead_bench.TOOLS), pairs, seconds, _say)
    tell([result.to_json() for result in results], overhead_bench.table(results), output, path)


@bench.command()
@click.option("--pairs", default=200, show_default=True, help="Windows with the trace, each between two without.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of one window.")
@click.option("--tool", "tools", multiple=True, type=click.Choice(sorted(switching_bench.TOOLS)), help="Only these.")
@output_options
def switching(pairs: int, seconds: float, tools: tuple[str, ...], output: str, path: Path | None) -> None:
    """What the trace costs, switched on and off under a load that goes on: for machines that are noisy."""
    results = [switching_bench.measure(tool, pairs, seconds, _say) for tool in tools or tuple(switching_bench.TOOLS)]
    tell([result.to_json() for result in results], switching_bench.table(results), output, path)


@bench.command()
@click.option("--runs", default=5, show_default=True, help="With each hook; medians count.")
@output_options
def hooks(runs: int, output: str, path: Path | None) -> None:
    """What each hook of the tracepoint backend costs a connection on the loopback device."""
    times = hooks_bench.measure(runs, _say)
    results = [{"attached": name, "microseconds": values} for name, values in times.items()]
    tell(results, hooks_bench.table(times), output, path)


@bench.command()
@click.option("--mode", "modes", multiple=True, type=click.Choice(sorted(rules_bench.MODES)), help="Only these.")
@click.option("--services", multiple=True, type=click.IntRange(min=1), default=(10_000,), show_default=True)
@click.option("--runs", default=5, show_default=True, help="Of each command; the fastest counts.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds after which a command is ended.")
@output_options
def rules(
    modes: tuple[str, ...], services: tuple[int, ...], runs: int, limit: float, output: str, path: Path | None
) -> None:
    """What reading the kernel's rules costs, beside the programs that print them; 3 endpoints for each Service.

    Loading nftables' rules of 10,000 Services takes the kernel a minute.
    """
    results = rules_bench.measure(modes or tuple(rules_bench.MODES), services, runs, limit, _say)
    tell([result.to_json() for result in results], rules_bench.table(results), output, path)


@bench.command()
@click.option("--runs", default=3, show_default=True, help="Clusters to start, and endpoints to change; medians count.")
@click.option("--services", type=click.IntRange(min=2, max=25_000), default=10_000, show_default=True)
@click.option("--mode", "modes", multiple=True, type=click.Choice(sorted(cluster_bench.MODES)), default=("legacy",))
@output_options
def cluster(runs: int, services: int, modes: tuple[str, ...], output: str, path: Path | None) -> None:
    """What the miniature cluster takes: up, down, scaling, memory; kube-proxy with many Services.

    Mode nft takes two minutes for its full sync, nftables one.
    """
    results = cluster_bench.measure_cluster(runs, _say) + cluster_bench.measure_proxy(services, runs, modes, _say)
    tell([result.to_json() for result in results], cluster_bench.table(results), output, path)


def _say(line: str) -> None:
    """What is being done, on standard error: the results alone go to standard output."""
    click.echo(line, err=True)


@bench.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def scale(directory: Path) -> None:
    """Put what `k8snet-lab bench scale --output DIRECTORY` measured into docs/performance.md, with its plot."""
    scale_bench.document(directory)


if __name__ == "__main__":
    bench(prog_name="scripts/bench")
