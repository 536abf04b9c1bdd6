"""How every measurement of `scripts/bench` is told: a table or JSON on standard output, and JSON to a file.

What belongs here: the options for that, and what the machine is. What does not: measuring, the tables.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def output_options(command: Command) -> Command:
    """Give a command `-o table|json` and `--json FILE`, as its arguments `output` and `path`."""
    to_file = click.option(
        "--json", "path", type=click.Path(path_type=Path), help="Write the results to this file, too."
    )
    form = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
    return to_file(form(command))


def tell(results: Sequence[dict[str, Any]], table: str, output: str, path: Path | None) -> None:
    """Print the results in the form that is wanted; the file gets the same document as `-o json` prints."""
    text = json.dumps({"machine": machine(), "results": list(results)}, indent=2)
    click.echo(text if output == "json" else table)
    if path is not None:
        path.write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What the figures were taken on; load: of the last minute, which tells how much else was going on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "memory_mb": pages >> 20,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
