"""Which kinds are served just now: those that the API has from the start, and the custom ones.

Stands for the API server's RESTMapper and the list of its handlers, as they grow and shrink with
CustomResourceDefinitions. The store has one of these, so that everything that has the store sees the same kinds.

What belongs here: finding a kind by what objects or paths call it. What does not: what a definition must look like to
be served (`labs.cluster.extensions`).
"""

from __future__ import annotations

from labs.cluster.resources import ALL, Resource


class Kinds:
    """The kinds of one API. `revision` changes whenever they do, for whoever keeps something that is made from them."""

    def __init__(self) -> None:
        self.revision = 0
        self._custom: dict[str, tuple[Resource, ...]] = {}
        self._index()

    def served(self) -> tuple[Resource, ...]:
        """Everything that is served now, each version by itself, also what is a view on something else."""
        return tuple(self._by_kind.values())

    def stored(self) -> tuple[Resource, ...]:
        """The same as the store has it: one resource for each kind of objects."""
        return tuple(dict.fromkeys(resource.stored for resource in self.served()))

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        """The resource whose objects say so of themselves."""
        return self._by_kind.get((api_version, kind))

    def by_path(self, prefix: str, plural: str) -> Resource | None:
        """The resource served at `prefix`/…/`plural`."""
        return self._by_path.get((prefix, plural))

    def define(self, name: str, versions: tuple[Resource, ...]) -> None:
        """Serve the versions of the custom kind `name`, and no others; () ends it."""
        if versions:
            self._custom[name] = versions
        else:
            self._custom.pop(name, None)
        self.revision += 1
        self._index()

    def _index(self) -> None:
        resources = [*ALL, *(one for versions in self._custom.values() for one in versions)]
        self._by_kind = {(resource.api_version, resource.kind): resource for resource in resources}
        self._by_path = {(resource.prefix, resource.plural): resource for resource in resources}
