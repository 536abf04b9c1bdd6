"""A container's environment: what the API tells of Services, ConfigMaps, Secrets and the pod itself.

Stands for makeEnvironmentVariables in pkg/kubelet/kubelet_pods.go and for pkg/kubelet/envvars. Later ones win:
Services, then `envFrom`, then `env`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from labs.cluster.downward import field_text, resource_text
from labs.cluster.resources import Object
from tracer.errors import K8snetError

EXPRESSION = re.compile(r"\$\$|\$\(([^()]*)\)")


class MissingConfig(K8snetError):
    """Something that an environment refers to is not there; kubelet's CreateContainerConfigError."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a pod's environment and volumes may be made of. `services`: all that the kubelet knows; `configs` and
    `secrets`: those of the pod's namespace, by name; `allocatable`: the node's, by resource."""

    services: Sequence[Object] = ()
    configs: Mapping[str, Object] = field(default_factory=dict)
    secrets: Mapping[str, Object] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)


def make(pod: Object, container: Object, sources: Sources, fields: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container. `fields`: the downward API's, by fieldPath. Raises MissingConfig."""
    env = _of_services(pod, sources.services)
    for entry in container.get("envFrom") or ():
        prefix = entry.get("prefix") or ""
        for kind in ("configMapRef", "secretRef"):
            if entry.get(kind):
                data = _data(kind, entry[kind], sources) or {}
                env.update((prefix + name, value) for name, value in data.items())
    known = dict(env)
    for entry in container.get("env") or ():
        value = _value(pod, container, entry, sources, fields, known)
        if value is not None:
            env[entry["name"]] = known[entry["name"]] = value
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """$(NAME) is replaced where NAME is known, $$ stands for $ (third_party/forked/golang/expansion)."""

    def replace(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else env.get(found[1], found[0])

    return EXPRESSION.sub(replace, text)


def expand_path(text: str, env: Mapping[str, str]) -> str | None:
    """The same for a path: None when a name in it is not known."""
    names = [found[1] for found in EXPRESSION.finditer(text) if found[0] != "$$"]
    return expand(text, env) if all(name in env for name in names) else None


def _value(
    pod: Object, container: Object, entry: Object, sources: Sources, fields: Mapping[str, str], known: Mapping[str, str]
) -> str | None:
    """The value of one entry of `env`; None for an optional one that is missing."""
    origin = entry.get("valueFrom") or {}
    if "fieldRef" in origin:
        return field_text(pod, origin["fieldRef"]["fieldPath"], fields)
    if "resourceFieldRef" in origin:
        return resource_text(pod, container["name"], origin["resourceFieldRef"], sources.allocatable)
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if kind in origin:
            return _key(pod, kind, origin[kind], sources)
    return expand(str(entry.get("value") or ""), known)


def _key(pod: Object, kind: str, reference: Object, sources: Sources) -> str | None:
    data = _data(kind, reference, sources)
    if data is not None and reference["key"] in data:
        return data[reference["key"]]
    if data is None or reference.get("optional"):
        return None
    what = "ConfigMap" if kind.startswith("configMap") else "Secret"
    namespace = pod["metadata"]["namespace"]
    raise MissingConfig(f"couldn't find key {reference['key']} in {what} {namespace}/{reference['name']}")


def _data(kind: str, reference: Object, sources: Sources) -> dict[str, str] | None:
    """The texts of a ConfigMap or a Secret; None for an optional one that is missing."""
    is_config = kind.startswith("configMap")
    found = (sources.configs if is_config else sources.secrets).get(reference["name"])
    if found is None:
        if reference.get("optional"):
            return None
        raise MissingConfig(f'{"configmap" if is_config else "secret"} "{reference["name"]}" not found')
    data = found.get("data") or {}
    if is_config:
        return {name: str(value) for name, value in data.items()}
    return {name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()}


def _of_services(pod: Object, services: Iterable[Object]) -> dict[str, str]:
    """NAME_SERVICE_HOST and its kin: of default/kubernetes, and of the pod's namespace unless it wants none."""
    namespace, links = pod["metadata"]["namespace"], pod["spec"].get("enableServiceLinks", True)
    env: dict[str, str] = {}
    for service in services:
        metadata, ip = service["metadata"], service["spec"].get("clusterIP")
        if ip in (None, "", "None"):
            continue
        is_api = (metadata["namespace"], metadata["name"]) == ("default", "kubernetes")
        if is_api or (links and metadata["namespace"] == namespace):
            env.update(_of_service(metadata["name"], ip, service["spec"].get("ports") or ()))
    return env


def _of_service(name: str, ip: str, ports: Sequence[Object]) -> dict[str, str]:
    """FromServices and makeLinkVariables, pkg/kubelet/envvars/envvars.go."""
    prefix = name.upper().replace("-", "_")
    host = f"[{ip}]" if ":" in ip else ip
    env = {f"{prefix}_SERVICE_HOST": ip}
    if ports:
        env[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            env[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    for number, port in enumerate(ports):
        protocol = port.get("protocol") or "TCP"
        url, link = f"{protocol.lower()}://{host}:{port['port']}", f"{prefix}_PORT_{port['port']}_{protocol}"
        if number == 0:
            env[f"{prefix}_PORT"] = url
        env |= {
            link: url,
            f"{link}_PROTO": protocol.lower(),
            f"{link}_PORT": str(port["port"]),
            f"{link}_ADDR": ip,
        }
    return env
