"""The volumes of one pod: directories that its containers share, and mounts of them.

Stands for kubelet's volume manager and for pkg/volume/{emptydir,configmap,secret,downwardapi,projected,hostpath}. They
lie in the supervisor's own /run; a container gets each as a mount that is attached nowhere yet, so that no other pod
sees it. A hostPath is the node's, and its runtime mounts it. Left out: persistent volumes, and the limit of an emptyDir
that is no tmpfs.

What belongs here: directories and mounts. What does not: what is in the files (`labs.cluster.volumecontents`), and who
tells of trouble (`labs.cluster.podworker`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs.cluster import atomicwriter, linux
from labs.cluster.podenv import MissingConfig, expand_path
from labs.cluster.quantities import parse
from labs.cluster.resources import Object
from labs.cluster.runtime.client import ContainerError, Runtime
from labs.cluster.runtime.container import Mount
from labs.cluster.volumecontents import KINDS, Origin, VolumeTrouble, contents

ROOT = Path("/run/pods")


class SetUpFailed(VolumeTrouble):
    """A volume is not there yet; the message is that of kubelet's event FailedMount."""


@dataclass(slots=True)
class PodVolumes:
    """The volumes of a pod; `runtime` is its node's."""

    pod: Object
    runtime: Runtime

    @property
    def _directory(self) -> Path:
        return Path(ROOT, self.pod["metadata"]["uid"], "volumes")

    def _path(self, name: str) -> Path:
        return self._directory / name

    async def set_up(self, origin: Origin) -> None:
        """Have all volumes. May be called again. Raises SetUpFailed."""
        for volume in self.pod["spec"].get("volumes") or ():
            try:
                await self._set_up(volume, origin)
            except (VolumeTrouble, ContainerError, OSError) as error:
                message = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                raise SetUpFailed(message) from error

    async def _set_up(self, volume: Object, origin: Origin) -> None:
        path = self._path(volume["name"])
        if any(kind in volume for kind in KINDS):
            files = contents(volume, origin)
            path.mkdir(parents=True, exist_ok=True)
            atomicwriter.write(path, files)
        elif "hostPath" in volume:
            os.close(await self.runtime.host_path(volume["hostPath"]["path"], volume["hostPath"].get("type") or ""))
        elif "emptyDir" in volume:
            if not path.exists():
                path.mkdir(parents=True)
                _fill_empty(path, volume["emptyDir"] or {})
        else:
            kind = next((key for key in volume if key != "name"), "none")
            raise VolumeTrouble(f"volumes of type {kind} are not offered here")

    def refresh(self, origin: Origin) -> None:
        """Take over what has changed in the objects that volumes consist of; what is missing stays as it was."""
        for volume in self.pod["spec"].get("volumes") or ():
            if any(kind in volume for kind in KINDS) and self._path(volume["name"]).exists():
                try:
                    files = contents(volume, origin)
                except VolumeTrouble:
                    continue
                atomicwriter.write(self._path(volume["name"]), files)

    async def mounts(self, container: Object, env: Mapping[str, str]) -> tuple[list[Mount], list[int]]:
        """The mounts of a container, and a descriptor for each, which the caller closes.

        Raises MissingConfig, ContainerError or OSError.
        """
        volumes = {volume["name"]: volume for volume in self.pod["spec"].get("volumes") or ()}
        mounts: list[Mount] = []
        fds: list[int] = []
        try:
            # A volume may be mounted inside another one.
            for mount in sorted(container.get("volumeMounts") or (), key=lambda one: one["mountPath"].count("/")):
                volume, inner = volumes[mount["name"]], _sub_path(mount, env)
                if "hostPath" in volume:
                    source = volume["hostPath"]
                    fds.append(await self.runtime.host_path(source["path"], source.get("type") or "", inner))
                else:
                    fds.append(_clone(self._path(mount["name"]), inner))
                read_only = bool(mount.get("readOnly")) or any(kind in volume for kind in KINDS)
                mounts.append(Mount(mount["mountPath"], read_only))
        except BaseException:
            close_all(fds)
            raise
        return mounts, fds

    def tear_down(self) -> None:
        """Remove all of it."""
        for volume in self.pod["spec"].get("volumes") or ():
            if (volume.get("emptyDir") or {}).get("medium") == "Memory" and self._path(volume["name"]).is_mount():
                linux.unmount(str(self._path(volume["name"])), linux.MNT_DETACH)
        shutil.rmtree(self._directory.parent, ignore_errors=True)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _fill_empty(path: Path, source: Object) -> None:
    """Make an emptyDir of what is an ordinary directory so far."""
    if source.get("medium") == "Memory":
        size = f"size={int(parse(source['sizeLimit']))}," if source.get("sizeLimit") else ""
        linux.mount("tmpfs", str(path), "tmpfs", data=f"{size}mode=777")
    else:
        path.chmod(0o777)


def _sub_path(mount: Object, env: Mapping[str, str]) -> str:
    """The part of a volume that is to be mounted. Raises MissingConfig."""
    if not mount.get("subPathExpr"):
        return mount.get("subPath") or ""
    expanded = expand_path(mount["subPathExpr"], env)
    if expanded is None:
        raise MissingConfig(f"failed to expand subPath {mount['subPathExpr']}: missing value for a variable")
    return expanded


def _clone(volume: Path, inner: str) -> int:
    """A mount of a volume, or of a directory or file in it; a directory that is not there is made."""
    path = Path(os.path.realpath(volume / inner))
    if not path.is_relative_to(volume):
        raise ContainerError(f"subPath {inner} leads out of the volume")
    if not path.exists():
        path.mkdir(parents=True)
    return linux.clone_mount(str(path))
