"""All lessons together: their order, what each needs, and what each takes for known.

What belongs here: finding lessons, and what holds between them. What does not: what holds within one (`spec`, `lint`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from labs.engine.spec import Lesson, read
from tracer.errors import UsageError

LESSONS = Path(__file__).parents[1] / "lessons"


class Course:
    """The lessons in order."""

    def __init__(self, directory: Path, lessons: Sequence[Lesson]) -> None:
        self.directory = directory
        self.lessons = sorted(lessons, key=lambda lesson: lesson.order)

    @classmethod
    def read(cls, directory: Path | None = None) -> Course:
        """All lessons below a directory: that of $K8SNET_LAB_LESSONS, or our own. Raises LessonError."""
        where = directory or Path(os.environ.get("K8SNET_LAB_LESSONS") or LESSONS)
        return cls(where, [read(path.parent) for path in sorted(where.glob("*/lab.toml"))])

    def find(self, text: str) -> Lesson:
        """A lesson by its id, its number, or the beginning of its id. Raises UsageError."""
        for lesson in self.lessons:
            if text in (lesson.id, str(lesson.order)):
                return lesson
        found = [lesson for lesson in self.lessons if lesson.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        raise UsageError(f"{text}: no such lesson", hint="k8snet-lab list")

    def next_after(self, done: Collection[str]) -> Lesson | None:
        """The first lesson that is not done; None when all are."""
        return next((lesson for lesson in self.lessons if lesson.id not in done), None)

    @property
    def steps(self) -> int:
        """How many steps there are in all."""
        return sum(len(lesson.steps) for lesson in self.lessons)

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong between the lessons: numbers and ids given twice, needs that are not there or come later,
        circles, concepts that are assumed before they are taught or are taught twice.
        """
        return [*self._twice(), *self._needs(), *self._concepts()]

    def _twice(self) -> list[str]:
        found = []
        for what in ("id", "order", "title"):
            values = [getattr(lesson, what) for lesson in self.lessons]
            found += [f"{what} {value}: given twice" for value in sorted({v for v in values if values.count(v) > 1})]
        return found

    def _needs(self) -> list[str]:
        order = {lesson.id: lesson.order for lesson in self.lessons}
        found = []
        for lesson in self.lessons:
            for need in lesson.needs:
                if need not in order:
                    found.append(f"{lesson.id}: needs {need}, which is no lesson")
                elif order[need] >= lesson.order:
                    found.append(f"{lesson.id}: needs {need}, which comes later")
        try:
            TopologicalSorter({lesson.id: lesson.needs for lesson in self.lessons}).prepare()
        except CycleError as error:
            found.append(f"needs go in a circle: {' → '.join(error.args[1])}")
        return found

    def _concepts(self) -> list[str]:
        """Every assumed concept must be taught by a lesson that this one needs, directly or through others."""
        found: list[str] = []
        taught: dict[str, str] = {}
        for lesson in self.lessons:
            for concept in lesson.concepts:
                if concept in taught:
                    found.append(f"{lesson.id}: {concept} is taught by {taught[concept]} already")
                taught.setdefault(concept, lesson.id)
        for lesson in self.lessons:
            known = {concept for before in self._before(lesson.id) for concept in before.concepts}
            found += [
                f"{lesson.id}: assumes {concept}, which no lesson that it needs teaches"
                for concept in lesson.assumes
                if concept not in known
            ]
        return found

    def _before(self, lesson_id: str) -> list[Lesson]:
        """All lessons that one needs, directly or through others."""
        by_id = {lesson.id: lesson for lesson in self.lessons}
        waiting, seen = list(by_id[lesson_id].needs), set()
        while waiting:
            one = waiting.pop()
            if one in by_id and one not in seen:
                seen.add(one)
                waiting += by_id[one].needs
        return [by_id[one] for one in seen]
