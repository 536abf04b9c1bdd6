"""k8snet-trace in the containers of a kind cluster's nodes: this checkout's source goes in, install.sh does the rest.

What belongs here: getting it in. What does not: what is done inside (`install.sh` beside this file).
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from labs.engine.kind.world import KindCluster, docker
from tracer.errors import K8snetError, MissingError

CHECKOUT = Path(__file__).parents[3]
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "bpf", "tracer", "labs")
INTO = "/opt/k8snet/source"
SCRIPT = "/opt/k8snet/install.sh"
SKIPPED = ("__pycache__", ".mypy_cache")
INSTALL_SECONDS = 900.0

Say = Callable[[str], None]


def source() -> bytes:
    """What pip needs of this checkout, as a tar file. Raises MissingError where there is only an installation."""
    missing = [name for name in SOURCE if not (CHECKOUT / name).exists()]
    if missing:
        raise MissingError(
            f"{CHECKOUT} is no checkout of k8snet: it has no {missing[0]}",
            hint="git clone the project, and run scripts/setup there",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in SOURCE:
            archive.add(CHECKOUT / name, name, filter=_wanted)
    return buffer.getvalue()


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """An entry as root's, without what Python leaves beside the code."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if Path(entry.name).name in SKIPPED else entry


def commands(container: str) -> list[list[str]]:
    """What is run for one node, in order; the first reads the tar file of `source`, the second install.sh."""
    return [
        ["docker", "exec", "-i", container, "sh", "-c", f"rm -rf {INTO}; mkdir -p {INTO}; tar -x -C {INTO}"],
        ["docker", "exec", "-i", container, "sh", "-c", f"cat >{SCRIPT}"],
        ["docker", "exec", container, "sh", SCRIPT],
    ]


def by_hand(container: str) -> list[str]:
    """The same as lines for a shell."""
    feeds = (
        f"tar -c -C {shlex.quote(str(CHECKOUT))} --exclude=__pycache__ {' '.join(SOURCE)} | ",
        f"cat {shlex.quote(str(Path(__file__).with_name('install.sh')))} | ",
        "",
    )
    return [feed + shlex.join(command) for feed, command in zip(feeds, commands(container), strict=True)]


def install(world: KindCluster, say: Say) -> None:
    """Install it on every node, one after the other. Raises K8snetError with the last words of what failed."""
    archive = source()
    script = Path(__file__).with_name("install.sh").read_bytes()
    for container in world.containers:
        say(f"{container}: installing")
        for command, feed in zip(commands(container), (archive, script, b""), strict=True):
            _run(command, feed)
        version = docker("exec", container, "k8snet-trace", "--version")
        if version.code != 0:
            raise K8snetError(f"{container}: k8snet-trace does not run: {version.err.strip() or version.out.strip()}")
        say(f"{container}: {version.out.strip()}")


def _run(command: list[str], feed: bytes) -> None:
    try:
        done = subprocess.run(command, input=feed, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise K8snetError(f"{shlex.join(command)}: not done after {INSTALL_SECONDS:.0f} s") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-5:]
        raise K8snetError(f"{shlex.join(command)}: exit code {done.returncode}: {' | '.join(words)}")
