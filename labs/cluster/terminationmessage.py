"""What a container leaves behind in words: the file at its terminationMessagePath, or the end of its log.

Stands for getTerminationMessage in pkg/kubelet/kuberuntime/kuberuntime_container.go, and its limits.
"""

from __future__ import annotations

from pathlib import Path

from labs.cluster.containerlogs import parse
from labs.cluster.podvolumes import ROOT
from labs.cluster.resources import Object

MAX_BYTES = 4096  # MaxContainerTerminationMessageLength
MAX_LOG_BYTES, MAX_LOG_LINES = 2048, 80  # MaxContainerTerminationMessageLog…


def make_file(pod: Object, container: str, identifier: str) -> Path:
    """An empty file for the message of one run of a container, to be mounted there."""
    path = Path(ROOT, pod["metadata"]["uid"], "containers", container, identifier[:8])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o666)  # whoever the container's user is
    return path


def take(path: Path, policy: str, status: int, log: Path) -> str:
    """The message that was left; the file goes. `policy`: the container's terminationMessagePolicy."""
    with path.open("rb") as file:
        message = file.read(MAX_BYTES)
    path.unlink()
    if not message and policy == "FallbackToLogsOnError" and status != 0:
        message = _end_of(log)
    return message.decode(errors="replace")


def _end_of(log: Path) -> bytes:
    lines = log.read_bytes().splitlines()[-MAX_LOG_LINES:] if log.exists() else []
    return b"".join(parse(line).text for line in lines)[-MAX_LOG_BYTES:]
