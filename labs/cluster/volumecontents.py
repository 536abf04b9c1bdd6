"""What is in the volumes that consist of objects: configMap, secret, downwardAPI and projected.

Stands for the MakePayload and collectData functions of pkg/volume/{configmap,secret,downwardapi,projected}, with their
words. What does not belong here: directories and mounts (`labs.cluster.podvolumes`). Left out: clusterTrustBundle.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from labs.cluster.downward import field_text, resource_text
from labs.cluster.podenv import Sources
from labs.cluster.resources import Object
from tracer.errors import K8snetError

KINDS = ("configMap", "secret", "downwardAPI", "projected")
TOKEN_SECONDS = 3600
NO_KEY = {"configmap": "configmap references non-existent config key", "secret": "references non-existent secret key"}


class VolumeTrouble(K8snetError):
    """A volume can't be had (yet); the message says why in kubelet's words."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a volume."""

    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What volumes are made of. `token`: makes a service account's token of an audience ("": the API's) and seconds."""

    pod: Object
    sources: Sources
    token: Callable[[str, int], str]
    fields: Mapping[str, str] = field(default_factory=dict)


def contents(volume: Object, origin: Origin) -> dict[str, File]:
    """The files of a volume of one of KINDS, by path. Raises VolumeTrouble."""
    kind = next(kind for kind in KINDS if kind in volume)
    source = volume[kind]
    mode = source.get("defaultMode", 0o644)
    if kind != "projected":
        return _of(kind, source, source.get("configMap" if kind == "configMap" else "secretName"), mode, origin)
    files: dict[str, File] = {}
    troubles: list[str] = []
    for part in source.get("sources") or ():
        for kind, inner in part.items():
            try:
                files.update(_of(kind, inner, inner.get("name"), mode, origin))
            except VolumeTrouble as error:
                troubles.append(error.message)
    if troubles:
        raise VolumeTrouble(troubles[0] if len(troubles) == 1 else f"[{', '.join(troubles)}]")
    return files


def _of(kind: str, source: Object, name: str | None, mode: int, origin: Origin) -> dict[str, File]:
    match kind:
        case "configMap":
            return _of_object(source, name or source.get("name", ""), origin.sources.configs, "configmap", mode)
        case "secret":
            return _of_object(source, name or "", origin.sources.secrets, "secret", mode)
        case "downwardAPI":
            return {item["path"]: _of_item(item, mode, origin) for item in source.get("items") or ()}
        case "serviceAccountToken":
            seconds = source.get("expirationSeconds", TOKEN_SECONDS)
            return {source["path"]: File(origin.token(source.get("audience") or "", seconds).encode(), mode)}
    raise VolumeTrouble(f"projected volumes of {kind} are not offered here")


def _of_object(source: Object, name: str, objects: Mapping[str, Object], kind: str, mode: int) -> dict[str, File]:
    found = objects.get(name)
    if found is None:
        if source.get("optional"):
            return {}
        raise VolumeTrouble(f'{kind} "{name}" not found')
    data = _data(found, kind)
    if not source.get("items"):
        return {key: File(value, mode) for key, value in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] in data:
            files[item["path"]] = File(data[item["key"]], item.get("mode") or mode)
        elif not source.get("optional"):
            words = (
                "configmap references non-existent config key"
                if kind == "configmap"
                else "references non-existent secret key"
            )
            raise VolumeTrouble(f"{words}: {item['key']}")
    return files


def _data(found: Object, kind: str) -> dict[str, bytes]:
    plain, binary = ("data", "binaryData") if kind == "configmap" else ("", "data")
    data = {key: str(value).encode() for key, value in (found.get(plain) or {}).items()}
    return data | {key: base64.b64decode(value) for key, value in (found.get(binary) or {}).items()}


def _of_item(item: Object, mode: int, origin: Origin) -> File:
    if item.get("fieldRef"):
        text = field_text(origin.pod, item["fieldRef"]["fieldPath"], origin.fields)
    else:
        text = resource_text(origin.pod, "", item["resourceFieldRef"], origin.sources.allocatable)
    return File(text.encode(), item.get("mode") or mode)
