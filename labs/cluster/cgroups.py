"""Removing a cgroup once its processes have ended, or ending them.

Stands for what kubelet's container manager does with a pod's cgroup (pkg/kubelet/cm/pod_container_manager_linux.go),
which tries again as well. What does not belong here: which cgroups there are (`labs.cluster.podspec`), the cluster's
own (`labs.cluster.ledger`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

# Who started the container, or a command in it, is in its cgroup too, but not in its pid namespace, and ends after it;
# and where many containers end at once, the kernel takes seconds to take their mounts apart.
TRIES_SECONDS = (0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0)


def kill(path: str | None) -> None:
    """Have the kernel kill all that is in a cgroup."""
    if path is not None:
        with contextlib.suppress(OSError):  # it is gone, or the kernel is older than v5.14 and has no such file
            Path(path, "cgroup.kill").write_text("1")


async def remove(path: str | None) -> None:
    """Remove a cgroup that should be empty, with what is below it; one that stays busy goes with the cluster.

    To the end, also if cancelled.
    """
    if path is None:
        return
    task = asyncio.create_task(_try_to_remove(Path(path)))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def _try_to_remove(path: Path) -> None:
    for seconds in TRIES_SECONDS:
        try:
            for directory, _, _ in os.walk(path, topdown=False):
                Path(directory).rmdir()
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            await asyncio.sleep(seconds)
