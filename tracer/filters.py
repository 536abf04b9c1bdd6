"""Which records are wanted.

What belongs here: the filter options as data, and the one predicate that they make. A filter looks only at what all
connections of one shape share, never at the time, the source port or the latency, so it is asked once per shape.
What does not: parsing options (`tracer.options`), counting (`tracer.trace`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tracer.events import FAILED_OUTCOMES, Connection

COMM_BYTES = 15  # what the kernel keeps of a command name: TASK_COMM_LEN - 1, include/linux/sched.h


@dataclass(frozen=True, slots=True)
class Filter:
    """Wanted values by field; an empty tuple wants all. Values of one field are alternatives, fields are ANDed.

    Names may be shell patterns (`*`, `?`, `[…]`). namespaces: of the source, the destination or the backend.
    pods: POD or NAMESPACE/POD, source or backend. services: NAME or NAMESPACE/NAME. ports: asked for, or the backend's.
    comms: cut to the kernel's 15 bytes before they are compared. failed: only what did not get through.
    """

    namespaces: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    comms: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    failed: bool = False

    def wants(self, connection: Connection) -> bool:
        """Whether a connection passes every filter that is set."""
        process = connection.process
        return (
            self._wants_from(connection.node, None if process is None else (process.comm, process.pid))
            and (not self.namespaces or _any_name(self.namespaces, _namespaces(connection)))
            and (not self.pods or _any_qualified(self.pods, _pods(connection)))
            and (not self.services or _any_qualified(self.services, _services(connection)))
            and (not self.ports or not _ports(connection).isdisjoint(self.ports))
            and (not self.protocols or connection.protocol.upper() in self.protocols)
            and (not self.failed or connection.outcome in FAILED_OUTCOMES)
        )

    def wants_other(self, document: Mapping[str, Any]) -> bool:
        """Whether a record of a type that this version does not know passes.

        All types share node and process; a filter on anything else can't be answered, so it leaves the record out.
        """
        if self.namespaces or self.pods or self.services or self.ports or self.protocols or self.failed:
            return False
        node, process = document.get("node"), document.get("process")
        known = (process.get("comm"), process.get("pid")) if isinstance(process, dict) else None
        return self._wants_from(node if isinstance(node, str) else None, known)

    def _wants_from(self, node: str | None, process: tuple[Any, Any] | None) -> bool:
        """The filters on node, comm and pid. process: (comm, pid), None when unknown."""
        comm, pid = process if process is not None else (None, None)
        return (
            (not self.nodes or _any_name(self.nodes, (node,)))
            and (not self.comms or _any_name(tuple(map(_kernel_comm, self.comms)), (comm,)))
            and (not self.pids or pid in self.pids)
        )


def _namespaces(connection: Connection) -> tuple[str | None, ...]:
    backend = connection.backend
    return (connection.source.namespace, connection.destination.namespace, backend.namespace if backend else None)


def _pods(connection: Connection) -> tuple[tuple[str | None, str | None], ...]:
    ends = (connection.source, connection.backend)
    return tuple((end.namespace, end.pod) for end in ends if end is not None)


def _services(connection: Connection) -> tuple[tuple[str | None, str | None], ...]:
    return ((connection.destination.namespace, connection.destination.service),)


def _ports(connection: Connection) -> set[int]:
    return {connection.destination.port} | ({connection.backend.port} if connection.backend else set())


def _any_name(wanted: tuple[str, ...], names: tuple[str | None, ...]) -> bool:
    return any(name is not None and any(_matches(name, pattern) for pattern in wanted) for name in names)


def _any_qualified(wanted: tuple[str, ...], names: tuple[tuple[str | None, str | None], ...]) -> bool:
    """Whether one of the (namespace, name) pairs matches one of `NAME` or `NAMESPACE/NAME`."""
    for pattern in wanted:
        namespace_pattern, slash, name_pattern = pattern.rpartition("/")
        for namespace, name in names:
            if name is None or not _matches(name, name_pattern):
                continue
            if not slash or (namespace is not None and _matches(namespace, namespace_pattern)):
                return True
    return False


def _matches(name: str, pattern: str) -> bool:
    """Equality first: a process may really be called "[x]"."""
    return name == pattern or fnmatchcase(name, pattern)


def _kernel_comm(name: str) -> str:
    return name.encode()[:COMM_BYTES].decode(errors="replace")
