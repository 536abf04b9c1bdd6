"""What images have in them beside a program: files that were built for the cluster, and who waits until they are.

Stands for the layers of an image that a registry has and a node pulls. An image whose files are still being built is
one that is being pulled; one that could not be built can't be pulled. They lie in the supervisor's own /run, and a
container sees each as a read-only mount.

What belongs here: that. What does not: building (`labs.cluster.ebpfcompiler`), mounting (`labs.cluster.containerrun`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from labs.cluster.ebpfcompiler import OBJECT
from labs.cluster.images import NotPulled, find
from tracer.errors import K8snetError

ROOT = Path("/run/images")
SERVICE_LB = "service-lb"


class Builder(Protocol):
    """Who makes a file, and is at it already: `labs.cluster.ebpfcompiler.Compiler`."""

    def result(self) -> bytes:
        """Wait for its end; gives the file. Raises K8snetError."""


class ImageFiles:
    """The files of all images. `service_lb`: who compiles the one of that image, if it is wanted in this cluster.

    All methods belong to one event loop.
    """

    def __init__(self, service_lb: Builder | None) -> None:
        self._building: dict[str, asyncio.Task[Mapping[Path, Path]]] = {}
        if service_lb is not None:
            building = asyncio.to_thread(_keep, service_lb, ROOT / OBJECT.name)
            self._building[SERVICE_LB] = asyncio.create_task(building, name=f"files of {SERVICE_LB}")

    async def of(self, reference: str) -> Mapping[Path, Path]:
        """The files of the image that a pod's `image:` names, as its containers see them -> where they lie here.

        Waits until they are built. Raises NotPulled.
        """
        building = self._building.get(find(reference).name)
        if building is None:
            return {}
        try:
            return await asyncio.shield(building)
        except K8snetError as error:
            raise NotPulled(error.message) from error


def _keep(builder: Builder, path: Path) -> Mapping[Path, Path]:
    packed = builder.result()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed)
    return {OBJECT: path}
