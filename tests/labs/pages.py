"""Pages of docs/ whose commands are run: their blocks, and what of an output differs each time.

A block is indented by four spaces and begins with its commands, each after "$ "; what follows is what they print.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping

from tests.labs.lab import REPOSITORY, Lab

# What differs each time -> a word for it.
MASKS = {
    r"10\.244\.\d+\.\d+(\.\d+)?": "POD",
    r"(?<=id: )\d+": "ID",
    r"(?<=: )\d+(?=[+* ])": "ID",
    r"\b17\d{8}\b": "SERIAL",
}


def blocks(page: str) -> list[list[str]]:
    """The blocks of a page of docs/ that have commands."""
    parts: list[list[str]] = [[]]
    for line in (REPOSITORY / "docs" / page).read_text().splitlines():
        if line.startswith("    "):
            parts[-1].append(line[4:])
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part and part[0].startswith("$ ")]


def masked(lines: Iterable[str], more: Mapping[str, str] | None = None) -> list[str]:
    """Lines in order of the alphabet, with a word in the place of whatever differs each time."""
    text = "\n".join(re.sub(r"\s+", " ", line).strip() for line in lines)
    for pattern, word in {**MASKS, **(more or {})}.items():
        text = re.sub(pattern, word, text)
    return sorted(text.splitlines())


def run(cluster: Lab, block: list[str]) -> tuple[list[str], list[str]]:
    """Run a block's commands about a cluster; gives what they print, and what the page says. They may not complain."""
    commands = [line[2:] for line in block if line.startswith("$ ")]
    shim = f'k8snet-lab() {{ verb=$1; shift; {sys.executable} -m labs.cli "$verb" --name {cluster.name} "$@"; }}'
    script = "\n".join([shim, *commands])
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines(), block[len(commands) :]
