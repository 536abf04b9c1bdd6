"""The lessons stand to each other as they should, and the project's own do."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.engine import lint
from labs.engine.course import Course
from tests.labs.engine import lessons
from tracer.errors import UsageError


def course(tmp_path: Path, **changes: str) -> Course:
    """Lessons "one" to "three", each with more lines of lab.toml."""
    for number, name in enumerate(("one", "two", "three"), 1):
        lab = lessons.LAB.replace('id = "web"', f'id = "{name}"', 1).replace("order = 1", f"order = {number}")
        lab = lab.replace('title = "A web server"', f'title = "{name}"').replace('concepts = ["service"]\n', "")
        lessons.write(tmp_path / f"0{number}-{name}", lab=changes.get(name, "concepts = []") + lab)
    return Course.read(tmp_path)


def test_lessons_are_found_by_id_number_and_beginning(tmp_path: Path) -> None:
    found = course(tmp_path)
    assert [lesson.id for lesson in found.lessons] == ["one", "two", "three"]
    assert [found.find(text).id for text in ("two", "3", "on")] == ["two", "three", "one"]
    with pytest.raises(UsageError):
        found.find("t")
    assert found.problems == []
    assert found.steps == 12


def test_the_next_lesson(tmp_path: Path) -> None:
    found = course(tmp_path)
    following = found.next_after({"one", "three"})
    assert following is not None and following.id == "two"
    assert found.next_after({"one", "two", "three"}) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"two": 'concepts = []\nneeds = ["four"]'}, "two: needs four, which is no lesson"),
        ({"two": 'concepts = []\nneeds = ["three"]'}, "two: needs three, which comes later"),
        ({"two": 'concepts = ["a"]', "one": 'concepts = ["a"]'}, "two: a is taught by one already"),
        (
            {"two": 'concepts = []\nassumes = ["a"]', "one": 'concepts = ["a"]'},
            "two: assumes a, which no lesson that it",
        ),
        ({"two": 'concepts = []\nneeds = ["two"]'}, "needs go in a circle: two → two"),
    ],
)
def test_problems_between_lessons(tmp_path: Path, changes: dict[str, str], problem: str) -> None:
    assert any(text.startswith(problem) for text in course(tmp_path, **changes).problems)


def test_what_is_needed_through_others_may_be_assumed(tmp_path: Path) -> None:
    found = course(
        tmp_path,
        one='concepts = ["a"]',
        two='concepts = []\nneeds = ["one"]',
        three='concepts = []\nneeds = ["two"]\nassumes = ["a"]',
    )
    assert found.problems == []


def test_the_projects_own_lessons_are_sound_on_paper() -> None:
    own = Course.read()
    assert len(own.lessons) >= 1
    assert own.problems == []
    assert [problem for lesson in own.lessons for problem in lint.problems(lesson)] == []
