"""What the Kubernetes API calls the Services' addresses: for maps of eBPF, which hold no names.

What belongs here: one list of Services, waited for, and kept up to date for as long as somebody watches. What does not:
all other names (`tracer.names.lookup`), and what they are for (`tracer.rules.sockets`).
"""

from __future__ import annotations

import functools
from pathlib import Path

from tracer import kubeapi
from tracer.names import objects
from tracer.names.objects import Service
from tracer.rules.sockets import Named, Names

SECONDS = 3.0  # that somebody waits for names at most


class ServiceNames:
    """The names of all Services of the cluster that `kubeconfig` says, or else that which `tracer.kubeapi.find` finds.

    It is asked only once somebody wants a name.
    """

    def __init__(self, kubeconfig: str | Path | None = None) -> None:
        self._services: dict[str, Service] = {}
        store = kubeapi.Resource("/api/v1/services", objects.service, self)
        self._mirror = kubeapi.Mirror(functools.partial(kubeapi.find, kubeconfig), [store])
        self._started = False

    def close(self) -> None:
        """Ask no more. Idempotent."""
        self._mirror.close()

    def trouble(self) -> str | None:
        """Why there are no names; None: they are there. Waits for that at most SECONDS, the first time."""
        self._begin()
        return None if self._mirror.loaded() else next(iter(self._mirror.trouble()), "it does not answer")

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self._mirror.start()
            self._mirror.settled(SECONDS)

    def names(self) -> Names:
        """By protocol, address and port, as they are now; waits as `trouble` does."""
        self._begin()
        found: dict[tuple[str, str | None, int], Named] = {}
        for service in list(self._services.values()):
            for port in service.ports:
                for kind, ip in service.addresses:
                    key = port.protocol, ip, port.port
                    found.setdefault(key, Named(service.namespace, service.name, port.name, kind))
                if port.node_port:
                    named = Named(service.namespace, service.name, port.name, "NodePort")
                    found.setdefault((port.protocol, None, port.node_port), named)
        return found

    # --- tracer.kubeapi.Store -----------------------------------------------------------------------------------------

    def replace(self, items: dict[str, Service]) -> None:
        """All Services that there are."""
        self._services = items

    def put(self, key: str, item: Service) -> None:
        """One that is new or has changed."""
        self._services[key] = item

    def remove(self, key: str) -> None:
        """One that is gone."""
        self._services.pop(key, None)
