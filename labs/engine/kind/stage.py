"""A kind cluster for lessons: what is there when one begins, and what goes when it ends; the cluster itself stays.

What belongs here: the order of things. What does not: the objects (`prepare`), names and addresses (`names`), the host
outside (`outside`), reaching the cluster (`world`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from labs.engine import undo
from labs.engine.kind import names, outside, prepare
from labs.engine.kind.world import KindCluster
from labs.engine.progress import Home
from labs.engine.spec import Lesson
from labs.engine.undo import Undo
from labs.engine.world import World
from tracer.errors import K8snetError, MissingError

Say = Callable[[str], None]


class KindStage:
    """See Stage."""

    def __init__(self, cluster: str, home: Home) -> None:
        self._cluster = KindCluster(cluster, home)

    @property
    def world(self) -> World:
        return self._cluster

    def check(self, lesson: Lesson) -> None:
        prepare.check(self._cluster, lesson)
        if lesson.requires.records and not self._cluster.shares_our_kernel:
            raise MissingError(
                f"{lesson.id} watches the kernel of {self._cluster.name}'s nodes, and that is not this machine's",
                hint="start it on the machine that the containers run on; vagrant up makes one",
            )

    def make(self, lesson: Lesson, say: Say) -> None:
        try:
            prepare.prepare(self._cluster, lesson, say)
            if lesson.requires.outside:
                say("a host outside")
                outside.start(self._cluster)
        except BaseException:
            self.clear(lesson)
            raise

    def clear(self, lesson: Lesson | None, undos: Sequence[Undo] = ()) -> None:
        undo.run(self._cluster, undos)
        outside.stop(self._cluster)
        if lesson is not None:
            with suppress(K8snetError):  # the cluster may be gone
                prepare.clean(self._cluster, lesson)

    def owner(self) -> tuple[int, str | None]:
        return self._cluster.owner(), None

    def words(self) -> dict[str, str]:
        return names.words(self._cluster)
