"""Checks of what the API holds: Services, endpoints, and any object.

What belongs here: looking at objects. What does not: whether traffic follows them (`kernel`, `traffic`).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import jsonpath

from labs.engine.checks.context import Context
from labs.engine.outcome import Outcome, failed, passed
from labs.engine.world import World
from tracer.errors import K8snetError


def object_(
    context: Context,
    *,
    kind: str,
    name: str,
    namespace: str = "default",
    path: str | None = None,
    equals: Any = None,
    one_of: list[Any] | None = None,
    absent: bool = False,
) -> Outcome:
    """An object is there, and what a JSONPath (RFC 9535) finds in it is `equals`, or `one_of`; or, `absent`, it is not.

    Without `path` only the object itself counts. Reasons: missing, there, different.
    """
    found = context.world.get(kind, name, namespace)
    what = f"{kind} {namespace}/{name}"
    look = f"kubectl -n {namespace} get {kind} {name} -o yaml"
    if path is None:
        return _existence(found is not None, not absent, what, f"kubectl -n {namespace} get {kind}")
    if found is None:
        return failed("missing", expected=what, seen="there is none", look=f"kubectl -n {namespace} get {kind}")
    values = jsonpath.findall(path, found)
    if absent:
        if not values:
            return passed(f"{what} has no {path}")
        return failed("there", expected=f"no {path} in {what}", seen=f"{path} is {values[0]}", look=look)
    wanted = [equals] if one_of is None else one_of
    if values and values[0] in wanted:
        return passed(f"{what}: {path} is {values[0]}")
    expected = f"{path} of {what} to be {' or '.join(map(str, wanted))}"
    return failed("different", expected=expected, seen=f"{values[0]}" if values else "it is not set", look=look)


def _existence(is_there: bool, wanted: bool, what: str, look: str) -> Outcome:
    if is_there == wanted:
        return passed(f"{what} is there" if is_there else f"{what} is gone")
    if wanted:
        return failed("missing", expected=what, seen="there is none", look=look)
    return failed("there", expected=f"no {what}", seen="it is still there", look=look)


def service(
    context: Context,
    *,
    name: str,
    namespace: str = "default",
    type: str | None = None,
    port: int | None = None,
    target_port: Any = None,
    selector: dict[str, str] | None = None,
    headless: bool | None = None,
) -> Outcome:
    """A Service is there, of this type, with this port (and its targetPort), this selector, headless or not.

    Reasons: missing, type, port, target-port, selector, headless.
    """
    found = context.world.get("service", name, namespace)
    what, look = f"Service {namespace}/{name}", f"kubectl -n {namespace} describe service {name}"
    if found is None:
        return failed("missing", expected=what, seen="there is none", look=f"kubectl get services -n {namespace}")
    spec = found["spec"]
    ports = {entry["port"]: entry.get("targetPort") for entry in spec.get("ports", ())}
    for reason, wanted, has in (
        ("type", type, spec["type"]),
        ("headless", headless, spec.get("clusterIP") == "None"),
        ("port", port, port if port in ports else ", ".join(map(str, ports)) or "none"),
        ("target-port", target_port, ports.get(port)),
        ("selector", selector, spec.get("selector")),
    ):
        if wanted is not None and wanted != has:
            expected = f"{what} with {reason} {_words(wanted)}"
            return failed(reason, expected=expected, seen=f"its {reason} is {_words(has)}", look=look)
    return passed(f"{what} is there, of type {spec['type']}")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={text}" for key, text in sorted(value.items())) or "empty"
    return {True: "yes", False: "no", None: "not set"}.get(value, str(value))


def endpoint(
    context: Context,
    *,
    service: str,
    namespace: str = "default",
    ready: int | None = None,
    at_least: int | None = None,
    unready: int | None = None,
    port: int | None = None,
) -> Outcome:
    """A Service has so many ready endpoints, by its EndpointSlices, and each has this port; and so many that are not.

    Reasons: no-endpoints, count, unready, port.
    """
    slices = context.world.get("endpointslices", None, namespace, f"kubernetes.io/service-name={service}")
    what = f"Service {namespace}/{service}"
    look = f"kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={service} -o wide"
    addresses = ready_addresses(slices)
    least = at_least if at_least is not None else 1
    wanted = f"{ready}" if ready is not None else f"at least {least}"
    if not addresses and ready != 0:
        return failed("no-endpoints", expected=f"{what} with {wanted} ready endpoints", seen="it has none", look=look)
    if len(addresses) != ready if ready is not None else len(addresses) < least:
        seen = f"it has {len(addresses)}: {', '.join(sorted(addresses))}"
        return failed("count", expected=f"{what} with {wanted} ready endpoints", seen=seen, look=look)
    others = all_addresses(slices) - addresses
    if unready is not None and len(others) != unready:
        seen = f"it has {len(others)}" + (f": {', '.join(sorted(others))}" if others else "")
        return failed("unready", expected=f"{what} with {unready} endpoints that are not ready", seen=seen, look=look)
    ports = {entry.get("port") for item in slices for entry in item.get("ports") or ()}
    if port is not None and ports != {port}:
        seen = f"their port is {', '.join(map(str, sorted(ports, key=str)))}"
        return failed("port", expected=f"endpoints of {what} with port {port}", seen=seen, look=look)
    return passed(f"{what} has {len(addresses)} ready endpoints")


def ready_addresses(slices: list[dict[str, Any]]) -> set[str]:
    """The addresses of the ready endpoints in some EndpointSlices; not told is ready, as the API has it."""
    return {
        address
        for item in slices
        for entry in item.get("endpoints") or ()
        if (entry.get("conditions") or {}).get("ready") is not False
        for address in entry["addresses"]
    }


def all_addresses(slices: list[dict[str, Any]]) -> set[str]:
    """The addresses of all endpoints in some EndpointSlices, ready or not."""
    return {address for item in slices for entry in item.get("endpoints") or () for address in entry["addresses"]}


class NoPod(K8snetError):
    """A pod that a check asks about is not there, or has no address. `name`: NAMESPACE/POD."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the pod {name} is not there, or has no address", hint="sudo k8snet-lab reset --step")
        self.name = name


def with_addresses(world: World, text: str) -> str:
    """A text in which pods' addresses stand for {NAMESPACE/POD}. Raises NoPod."""
    return re.sub(r"\{([^/{}]+)/([^/{}]+)\}", lambda found: _pod_address(world, found[1], found[2]), text)


def _pod_address(world: World, namespace: str, name: str) -> str:
    found = world.get("pod", name, namespace)
    ip = None if found is None else (found.get("status") or {}).get("podIP")
    if not ip:
        raise NoPod(f"{namespace}/{name}")
    return str(ip)


def pods(
    context: Context,
    *,
    selector: str,
    namespace: str = "default",
    ready: int | None = None,
    anew: bool = False,
    kept: bool = False,
) -> Outcome:
    """So many pods with these labels are ready, and no others are there; `anew`: all were made since the step began;
    `kept`: none was, and no container has begun again.

    Reasons: count, old, new.
    """
    found = context.world.get("pods", None, namespace, selector)
    what, look = f"pods {selector} in {namespace}", f"kubectl -n {namespace} get pods -l {selector} -o wide"
    names = ", ".join(pod["metadata"]["name"] for pod in found) or "none"
    count = sum(_is_ready(pod) for pod in found)
    if ready is not None and not count == len(found) == ready:
        seen = f"{count} of {len(found)} are ready: {names}"
        return failed("count", expected=f"{ready} {what}, all of them ready", seen=seen, look=look)
    old = [pod["metadata"]["name"] for pod in found if _created(pod) < int(context.since)]
    if anew and old:
        expected = f"{what} to be newer than this step"
        return failed("old", expected=expected, seen=f"older are {', '.join(old)}", look=look)
    # the API tells whole seconds: what was made in the one in which the step began may be the step's own
    new = [pod["metadata"]["name"] for pod in found if _created(pod) > context.since or _restarts(pod)]
    if kept and new:
        expected = f"{what} to be those that were there before"
        return failed("new", expected=expected, seen=f"new, or begun again: {', '.join(new)}", look=look)
    return passed(f"{what}: {names}")


def newest_pod(world: World, deployment: str) -> str | None:
    """The newest ready pod of a Deployment (NAMESPACE/NAME), as NAMESPACE/POD; None when it has none."""
    namespace, _, name = deployment.partition("/")
    found = world.get("deployment", name, namespace)
    labels = {} if found is None else found["spec"]["selector"].get("matchLabels") or {}
    if not labels:
        return None
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    ready = [
        pod
        for pod in world.get("pods", None, namespace, selector)
        if _is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
    ]
    newest = max(ready, key=_created, default=None)
    return None if newest is None else f"{namespace}/{newest['metadata']['name']}"


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _restarts(pod: dict[str, Any]) -> int:
    return sum(one.get("restartCount", 0) for one in (pod.get("status") or {}).get("containerStatuses") or ())


def _created(pod: dict[str, Any]) -> float:
    """Seconds since 1970; the API tells whole ones."""
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()


def endpoint_addresses(context: Context, name: str, namespace: str) -> list[str]:
    """The addresses of the ready endpoints of a Service, in order."""
    selector = f"kubernetes.io/service-name={name}"
    return sorted(ready_addresses(context.world.get("endpointslices", None, namespace, selector)))
