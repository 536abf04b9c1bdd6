"""Thousands of connections a second, of which no packet is looked at: each still has its record, and its backend.

Checked by others than the tracer: what the kernel counts in the client pods, and in the pods that accept.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.bench.load import SERVICE, Load, cluster
from tests.cli.command import start, wait_for
from tracer.source.watch import can_ask

pytestmark = [pytest.mark.bpf, pytest.mark.skipif(not can_ask(), reason="this kernel can't ask (Linux 6.3)")]

SECONDS = 3


def attached(pid: int) -> set[str]:
    """What a trace tells of the hooks that it holds: other ones while it asks than while it looks at packets."""
    held = set()
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held.add(file.read_text())
    return {text[text.index("link_type") :] for text in held if "link_type" in text}


def accepted(load: Load) -> Counter[str]:
    """Connections that each nginx pod has accepted (TcpPassiveOpens of RFC 4022)."""
    status = subprocess.run(load.lab("status", "-o", "json"), capture_output=True, check=True).stdout
    pods = [pod["name"] for pod in json.loads(status)["pods"] if pod["name"].startswith("nginx-")]
    found: Counter[str] = Counter()
    for pod in pods:
        command = load.command(f"bench/{pod}", "cat", "/proc/net/snmp")
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        found[pod] = int(dict(zip(names, values, strict=True))["PassiveOpens"])
    return found


def records_of(file: Path) -> list[dict[str, Any]]:
    records = map(json.loads, file.read_text().splitlines())
    return [record for record in records if record["destination"]["ip"] == SERVICE]


def test_every_connection_has_its_record_and_its_backend(tmp_path: Path) -> None:
    ready, file = tmp_path / "ready", tmp_path / "records"
    with cluster() as load, file.open("wb") as output:
        before = accepted(load)
        options = (
            "--backend",
            "tracepoint",
            "-o",
            "json",
            "--kubeconfig",
            load.kubeconfig(),
            "--ready-file",
            str(ready),
        )
        with start(*options, stdout=output) as process:
            wait_for(ready)
            looking = attached(process.pid)
            made = load.run(SECONDS).connections
            assert looking - attached(process.pid)
            process.terminate()
            _, errors = process.communicate(timeout=60)
        taken = accepted(load) - before
    assert ", 0 events lost, " in errors.splitlines()[-1]
    records = records_of(file)
    assert len(records) == made > 1000 * SECONDS
    established = [record for record in records if record["outcome"] == "established"]
    # The load ends with some connections under way, which no client waits for.
    assert len(established) >= made - 64
    assert Counter(record["backend"]["pod"] for record in established) == taken
    assert {record["destination"]["service"] for record in established} == {"nginx"}
    vias = {record["translation"]["via"][-1] for record in established}
    assert len(vias) == 3
    assert all(via.startswith("KUBE-SEP-") for via in vias)
