"""A world for the eBPF Service datapath alone: a network namespace, a bpffs and a cgroup that a test has to itself.

What belongs here: making it, running a function in it, removing it. What does not: clusters (`tests.labs.lab`).
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.cluster import ebpfloader, linux
from labs.cluster.ledger import find_cgroup_root
from labs.cluster.proxy.ebpf_maps import Tables


@dataclass(frozen=True)
class World:
    """What a function in it may use: the pinned maps and programs, and the cgroup that they are attached to."""

    pins: Path
    cgroup: Path

    def tables(self) -> Tables[Any]:
        """The maps, to be written by one proxy."""
        return Tables(ebpfloader.open_maps(self.pins))

    def enter(self) -> None:
        """Put the calling process into the cgroup, so that its connections are translated."""
        (self.cgroup / "cgroup.procs").write_text("0")


def run(act: Callable[[World], Any], capacities: Mapping[str, int] = ebpfloader.CAPACITIES) -> Any:
    """Run a function in a world of its own, in a child process, and give what it returned, which is plain JSON.

    An error in there is an AssertionError here. The kernel takes all but the cgroup apart when the child has ended.
    """
    root = find_cgroup_root()
    assert root is not None
    cgroup = root / f"k8snet-test-{secrets.token_hex(4)}"
    cgroup.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = _run_inside(act, cgroup, capacities)
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as said:
            answer = json.loads(said.read() or b'{"error": "the child ended"}')
    finally:
        os.waitpid(child, 0)
        cgroup.rmdir()
    assert "error" not in answer, answer["error"]
    return answer["result"]


def _run_inside(act: Callable[[World], Any], cgroup: Path, capacities: Mapping[str, int]) -> Any:
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        linux.mount("bpf", directory, "bpf")
        pins = Path(directory, "k8snet")
        ebpfloader.load(pins, cgroup, capacities)
        try:
            return {"result": act(World(pins, cgroup))}
        finally:
            linux.unmount(directory, linux.MNT_DETACH)
