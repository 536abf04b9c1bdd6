"""The cluster that `k8snet-lab up` makes, as checks, facts and faults see it.

A learner waits for checks, and each looks twice. A kubectl, a `k8snet-lab exec` or a k8snet-trace of its own takes a
tenth of a second and more to begin. So this very process asks the API, reads rules by the tracer's own library, and has
commands as its children, which enter the node or pod. Nothing is kept between two questions: each is answered as things
are then. Writing is left to kubectl.

What belongs here: reaching that cluster. What does not: making it (`labs.engine.stage`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labs.engine.world import BEGIN_ANEW, PROBE_RATE, RUN_SECONDS, Blocked, Ran, kubectl_get, ran
from tracer.errors import K8snetError

if TYPE_CHECKING:
    from labs.cluster.resources import Resource

PROBE_SECONDS = 1.0  # as k8snet-trace waits for an answer
_reading_rules = threading.Lock()  # python-iptables, which reads legacy tables, is not for several threads


class Miniature:
    """See World. `name`: the cluster's."""

    def __init__(self, name: str) -> None:
        self.name = name

    # ---- the API ----

    @property
    def kubeconfig(self) -> Path:
        from labs.cluster import control

        try:
            control.ask(self.name, {"ask": "ready"})  # a cluster that was killed may have left its file behind
            return control.kubeconfig(self.name)
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error

    def kubectl(self, *arguments: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return ran(["kubectl", *arguments], feed=feed, env=env, seconds=seconds)

    def apply(self, text: str) -> Ran:
        return self.kubectl("apply", "-f", "-", feed=text)

    def get(self, kind: str, name: str | None = None, namespace: str | None = None, selector: str = "") -> Any:
        resource = _resource(kind)
        if resource is None:
            return kubectl_get(self, kind, name, namespace, selector)
        from tracer.kubeapi import config
        from tracer.kubeapi.connection import Connection, NotFound

        path = f"{resource.prefix}{_place(resource, namespace)}/{resource.plural}"
        parameters: dict[str, str | int] = {"labelSelector": selector} if selector else {}
        with contextlib.closing(Connection(config.read([self.kubeconfig]))) as api:
            if name is None:
                own = {"apiVersion": resource.api_version, "kind": resource.kind}  # items of a list need not say it
                return [own | item for item in api.get(path, **parameters)["items"]]
            try:
                return api.get(f"{path}/{name}", **parameters)
            except NotFound:
                return None

    # ---- nodes and pods ----

    def run(self, target: str, *command: str, feed: str | None = None, seconds: float = RUN_SECONDS) -> Ran:
        from labs.cluster import control, enter

        try:
            place = enter.find(self.name, target)
            return Ran(*enter.capture(place, command, feed=feed, seconds=seconds))
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error
        except K8snetError as error:  # as the command `k8snet-lab exec` tells it
            return Ran(error.exit_code, "", f"error: {error.message}")

    def services(self, node: str) -> list[dict[str, Any]]:
        from tracer.commands.rules_source import chosen_rules
        from tracer.rules.kubeproxy import service_map

        with _reading_rules:
            return service_map(chosen_rules((), self._pid(node), str(self.kubeconfig))).to_json()

    def explain(self, node: str, to: str, source: str | None = None) -> dict[str, Any]:
        from tracer.commands.rules_source import chosen_rules
        from tracer.destination import parse
        from tracer.netns import resolve
        from tracer.rules.asked import Surroundings, answers

        pid = self._pid(node)
        with _reading_rules, contextlib.closing(Surroundings.of(resolve(pid))) as around:
            rules = chosen_rules((), pid, str(self.kubeconfig), source)
            (found,) = answers(rules, [parse(to)], source, around)
            return found.to_json()

    def probe(self, source: str, to: str, count: int) -> dict[str, Any]:
        from tracer.probe import conduct
        from tracer.probe.run import Plan

        plan = Plan(count, PROBE_RATE, PROBE_SECONDS)
        wishes = conduct.Wishes(plan, self._pid(source), kubeconfig=str(self.kubeconfig), with_names=False)
        return conduct.probe(to, wishes, lambda: False).to_json()

    def nodes(self) -> list[str]:
        return [node["name"] for node in self._status()["nodes"]]

    def unready(self) -> list[str]:
        """What is not yet, or no longer, as the API's objects say; [] when all is."""
        return list(self._status()["unready"])

    def _pid(self, target: str) -> str:
        """A process on a node, in a pod or on the host outside. Raises K8snetError."""
        from labs.cluster import control, enter

        try:
            return str(enter.find(self.name, target).pid)
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error

    def _status(self) -> dict[str, Any]:
        from labs.cluster import control

        try:
            return control.status(self.name)
        except control.NotUp as error:
            raise Blocked(error.message, hint=BEGIN_ANEW) from error


def _resource(kind: str) -> Resource | None:
    """The kind of objects that kubectl calls so; None: one that the API has not had from the start, if any."""
    from labs.cluster.resources import ALL

    names = kind.lower()
    return next((one for one in ALL if names in (one.plural, one.singular, *one.short)), None)


def _place(resource: Resource, namespace: str | None) -> str:
    """The part of a path that says which namespace. None: that of kubectl where nothing is said."""
    return f"/namespaces/{namespace or 'default'}" if resource.namespaced and namespace != "*" else ""
