"""docs/dns.md: its commands, run in a cluster, print what it shows."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.labs.lab import REPOSITORY, Lab

PAGE = REPOSITORY / "docs" / "dns.md"


def blocks() -> list[list[str]]:
    """The blocks of commands and their output."""
    parts: list[list[str]] = [[]]
    for line in PAGE.read_text().splitlines():
        if line.startswith("    "):
            parts[-1].append(line[4:])
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def masked(lines: list[str]) -> list[str]:
    """Lines in order of the alphabet, without what differs each time: ids, ports, pods' addresses, serials."""
    text = "\n".join(re.sub(r"\s+", " ", line).strip() for line in lines)
    for pattern, word in (
        (r"10\.244\.\d+\.\d+(\.\d+)?", "POD"),
        (r"(?<=id: )\d+", "ID"),
        (r"(?<=: )\d+(?=[+* ])", "ID"),
        (r"\b17\d{8}\b", "SERIAL"),
    ):
        text = re.sub(pattern, word, text)
    return sorted(text.splitlines())


def test_the_page_has_commands() -> None:
    assert len(blocks()) == 11
    assert all(block[0].startswith("$ ") for block in blocks())


@pytest.mark.root
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[-1][:40])
def test_a_block(cluster: Lab, block: list[str]) -> None:
    commands = [line[2:] for line in block if line.startswith("$ ")]
    shim = f'k8snet-lab() {{ verb=$1; shift; {sys.executable} -m labs.cli "$verb" --name {cluster.name} "$@"; }}'
    script = "\n".join([shim, *commands])
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert masked(done.stdout.splitlines()) == masked(block[len(commands) :])
