"""A lesson's files become values, and mistakes are named with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.engine.spec import Kind, LessonError, read
from tests.labs.engine import lessons


def test_a_lesson_is_read(tmp_path: Path) -> None:
    lesson = read(lessons.write(tmp_path / "01-web"))
    assert (lesson.id, lesson.order, lesson.minutes, lesson.concepts) == ("web", 1, 5, ("service",))
    assert [step.kind for step in lesson.steps] == [Kind.PREDICT, Kind.READ, Kind.ANSWER, Kind.CHANGE]
    assert [step.is_graded for step in lesson.steps] == [False, False, True, True]
    find, open_ = lesson.step("find"), lesson.step("open")
    assert lesson.solution_of(open_) == """kubectl patch service web -p '{"spec":{"type":"NodePort"}}'"""
    assert lesson.solution_of(lesson.step("look")) == ""
    assert find.question is not None
    assert (find.question.fact.name, find.question.form) == ("object", "an IP address")
    assert dict(find.question.fact.parameters) == {"kind": "service", "name": "web", "path": "$.spec.clusterIP"}
    assert [(check.name, dict(check.parameters)) for check in open_.checks] == [
        ("service", {"name": "web", "type": "NodePort"})
    ]
    assert open_.within == 0.0
    assert lesson.introduction.startswith("There is one Service here")
    assert [section.title for section in lesson.sections] == ["Guess", "Look", "Find its address", "Open it"]
    assert lesson.debrief.startswith("You have seen")
    assert [(wrong.path.name, wrong.step, wrong.reason) for wrong in lesson.wrong] == [("label.sh", "open", "type")]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('id = "web"', 'id = "Web"', "id: 'Web': lower-case words"),
        ("minutes = 5", "minutes = 0", "minutes: must be a whole number above 0"),
        ("minutes = 5", "minuts = 5", "minutes: a lesson must have it"),
        ("minutes = 5", "minutes = 5\nhours = 1", "hours: a lesson has no such key"),
        ('kind = "change"', 'kind = "alter"', "steps.open.kind: one of read, predict"),
        ('kind = "change"', 'kind = "fix"', "steps.open.fault: a step of kind fix breaks something"),
        ('kind = "change"', 'kind = "write"', "steps.open.files: a step of kind write has files"),
        ('kind = "change"', 'kind = "read"', "steps.open.checks: a step of kind read has none"),
        ('kind = "answer"', 'kind = "observe"', "steps.find.answer: a step of kind answer has it, and no other"),
        ('"Types.", ', "", "steps.open.hints: 3, each telling more"),
        ("within = 0", "within = 61", "steps.open.within: seconds, 0 to 60"),
        ("within = 0", "whitin = 0", "steps.open.whitin: no such key"),
        ('right = "b"', 'right = "c"', "predict.right: must be one of the choices"),
        ("order = 1", "order = 1\nrequires = { proxy = 'ipvs' }", "requires.proxy: 'ipvs' is none of iptables"),
        ("order = 1", "order = 1\nrequires = { pods = 3 }", "requires.pods: no such key"),
        ("order = 1", "order = 1\nrequires = { outside = 1.5 }", "requires.outside: 1.5 is none of True, False"),
        ("within = 0", 'on = ["moon"]\nwhy = "So."', "steps.open.on: some of miniature, kind"),
        ("within = 0", 'on = ["miniature"]', "steps.open.why: a step that can't be done everywhere says why"),
        ("within = 0", 'why = "So."', "steps.open.why: a step that can't be done everywhere says why, and no other"),
        ("order = 1", "order =", "Invalid value"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in lessons.LAB
    directory = lessons.write(tmp_path / "01-web", lab=lessons.LAB.replace(old, new))
    with pytest.raises(LessonError) as caught:
        read(directory)
    assert str(directory / "lab.toml") in caught.value.message
    assert complaint in caught.value.message


def test_the_headings_are_the_steps(tmp_path: Path) -> None:
    directory = lessons.write(tmp_path / "01-web", readme=lessons.README.replace("## Look", "## Look at it"))
    with pytest.raises(LessonError, match=r"README\.md: the headings of its sections are .*Look at it"):
        read(directory)


def test_a_wrong_answer_names_its_step_and_its_reason(tmp_path: Path) -> None:
    lesson = read(lessons.write(tmp_path / "01-web", wrong="#!/bin/bash\n# step: open\n"))
    with pytest.raises(LessonError, match=r"label\.sh: has no line `# fails: "):
        _ = lesson.wrong
