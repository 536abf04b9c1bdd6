"""What a lesson stands on: made before its first step, gone after its last. One protocol, and the cluster in miniature.

What belongs here: making, ending, and whose they are. What does not: looking at it (`labs.engine.world`), the steps
(`labs.engine.session`), and clusters made by kind (`labs.engine.kind.stage`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from labs.engine.miniature import Miniature
from labs.engine.spec import Lesson
from labs.engine.undo import Undo
from labs.engine.world import BEGIN_ANEW, World
from tracer.errors import K8snetError, UsageError

Say = Callable[[str], None]


class Stage(Protocol):
    """A cluster for lessons."""

    @property
    def world(self) -> World:
        """The cluster as checks see it."""

    def check(self, lesson: Lesson) -> None:
        """Raise K8snetError when the lesson can't be had there; changes nothing."""

    def make(self, lesson: Lesson, say: Say) -> None:
        """Have what the lesson starts from. Raises K8snetError, and leaves nothing then."""

    def clear(self, lesson: Lesson | None, undos: Sequence[Undo] = ()) -> None:
        """Take away what `make` made, and what the lesson's steps did: `undos` take their faults back.

        None: a lesson that is not known any more.
        """

    def owner(self) -> tuple[int, str | None]:
        """The process that the cluster ends with, and the cgroup of all its processes, where it has one."""

    def words(self) -> dict[str, str]:
        """What stands in lessons -> what it is called there. Raises K8snetError."""


class MiniatureStage:
    """The cluster that `k8snet-lab up` makes: one for each lesson."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    @property
    def world(self) -> World:
        return Miniature(self._cluster)

    def check(self, lesson: Lesson) -> None:
        pass

    def make(self, lesson: Lesson, say: Say) -> None:
        from labs.cluster import control
        from labs.cluster.options import ClusterOptions

        needs = lesson.requires
        options = ClusterOptions(
            name=self._cluster,
            nodes=needs.nodes,
            proxy=needs.proxy,
            cni=needs.cni,
            ip_family=needs.ip_family,
            iptables=needs.iptables,
            manifests=tuple(path.read_text(encoding="utf-8") for path in lesson.manifests),
        )
        if not control.up(options, say):
            raise UsageError(
                f"cluster {self._cluster} is up, and no lesson started it",
                hint=f"sudo k8snet-lab down --name {self._cluster}, or another --name for the lesson's",
            )

    def clear(self, lesson: Lesson | None, undos: Sequence[Undo] = ()) -> None:
        from labs.cluster import control

        control.down(self._cluster)

    def owner(self) -> tuple[int, str | None]:
        from labs.cluster.ledger import Ledger

        ledger = Ledger.read(self._cluster)
        if ledger.supervisor is None:
            raise K8snetError(f"cluster {self._cluster} has just ended", hint=BEGIN_ANEW)
        return ledger.supervisor[0], ledger.cgroup

    def words(self) -> dict[str, str]:
        return {}
