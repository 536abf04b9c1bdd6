"""`scripts/bench`: one subcommand for each measurement."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tests.bench import overhead as overhead_bench


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure on this machine, in namespaces of the measurement's own."""


@bench.command()
@click.option("--pairs", default=7, show_default=True, help="Runs with each tool, each between two without.")
@click.option("--seconds", default=4.0, show_default=True, help="Length of one run.")
@click.option("--tool", "tools", multiple=True, type=click.Choice(sorted(overhead_bench.TOOLS)), help="Only these.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write all the runs to this file.")
def overhead(pairs: int, seconds: float, tools: tuple[str, ...], path: Path | None) -> None:
    """What watching costs: short HTTP connections through a ClusterIP, with and without each tool."""
    results = overhead_bench.measure(
        tools or tuple(overhead_bench.TOOLS), pairs, seconds, lambda line: click.echo(line, err=True)
    )
    click.echo(overhead_bench.table(results))
    if path is not None:
        path.write_text(json.dumps([result.to_json() for result in results], indent=2) + "\n")


if __name__ == "__main__":
    bench(prog_name="scripts/bench")
