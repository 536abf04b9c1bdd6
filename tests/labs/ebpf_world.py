"""A world for the eBPF Service datapath alone: a bpffs and a cgroup with its programs, and for each test a network.

What belongs here: making it, running a function in it, removing it. What does not: clusters (`tests.labs.lab`).
Compiling takes most of the time, in an emulated machine many seconds: so tests share what is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.cluster import ebpfcompiler, ebpfloader, linux
from labs.cluster.ledger import find_cgroup_root
from labs.cluster.proxy.ebpf_maps import Tables
from tests.tracer.networks import begin_network


@dataclass(frozen=True)
class World:
    """Pinned maps and programs, and the cgroup that they are attached to. `holder`: a process that sees the pins."""

    pins: Path
    cgroup: Path
    holder: int

    def tables(self) -> Tables[Any]:
        """The maps, to be written by one proxy, which begins with removing what was there."""
        return Tables(ebpfloader.open_maps(self.pins))

    def enter(self) -> None:
        """Put the calling process into the cgroup, so that its connections are translated."""
        (self.cgroup / "cgroup.procs").write_text("0")

    def run(self, act: Callable[[World], Any]) -> Any:
        """Run a function in a child process with a network namespace of its own; gives what it returned, plain JSON.

        An error in there is an AssertionError here.
        """
        return _in_child(lambda: self._run(act))

    def _run(self, act: Callable[[World], Any]) -> Any:
        with open(f"/proc/{self.holder}/ns/mnt") as mounts:  # noqa: PTH123 - its descriptor is what counts
            linux.setns(mounts.fileno(), linux.CLONE_NEWNS)
        linux.unshare(linux.CLONE_NEWNET)
        begin_network()
        return act(self)


@contextlib.contextmanager
def loaded(defines: Mapping[str, int] = ebpfcompiler.DEFINES) -> Iterator[World]:
    """Have the programs loaded; afterwards nothing is left of them."""
    root = find_cgroup_root()
    assert root is not None
    cgroup = root / f"k8snet-test-{secrets.token_hex(4)}"
    cgroup.mkdir()
    try:
        with tempfile.TemporaryDirectory() as directory:
            pins = Path(directory, "k8snet")
            release, hold = os.pipe()
            holder, said = _fork(lambda: _hold(pins, cgroup, defines), (hold, release))
            os.close(release)
            try:
                assert said.readline() == "loaded\n", said.read()
                yield World(pins, cgroup, holder)
            finally:
                os.close(hold)
                os.waitpid(holder, 0)
                said.close()
    finally:
        cgroup.rmdir()


def _hold(pins: Path, cgroup: Path, defines: Mapping[str, int]) -> Iterator[str]:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("bpf", str(pins.parent), "bpf")
    ebpfloader.load(pins, cgroup, ebpfcompiler.compiled(defines))
    yield "loaded\n"


def _fork(say: Callable[[], Iterator[str]], pipe: tuple[int, int]) -> tuple[int, Any]:
    """A child that says something and then stays until the writing end of `pipe` is closed."""
    hold, release = pipe
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(hold)
            for line in say():
                os.write(writer, line.encode())
            os.close(writer)
            os.read(release, 1)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    return child, os.fdopen(reader)


def _in_child(act: Callable[[], Any]) -> Any:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"result": act()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        answer = json.loads(said.read() or b'{"error": "the child ended"}')
    os.waitpid(child, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]
