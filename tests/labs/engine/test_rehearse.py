"""Lessons are walked through as learners would, right and wrong, with no more fresh clusters than it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from labs.engine import session
from labs.engine.course import Course
from labs.engine.outcome import Outcome
from labs.engine.progress import Home
from labs.engine.rehearse import wrong_answers
from labs.engine.spec import Lesson
from tests.labs.engine import lessons
from tests.labs.engine.test_session import Paper
from tracer.errors import K8snetError

WRONG = "#!/bin/bash\n# step: {step}\n# fails: {reason}\n"


class Counted(Paper):
    """A walk that counts its clusters, and whose scripts answer as their name says."""

    clusters = 0
    is_spoilt = False

    def start(self, lesson: Lesson, on: str = "miniature") -> None:
        self.clusters += 1
        self.is_spoilt = False
        super().start(lesson, on)

    def script(self, text: str, what: str) -> None:
        if "# step: find" in text:
            self.answer("10.96.0.8")
        self.is_spoilt |= "spoil" in text
        if "delete" in text or ("# step: label" in text and self.fake.objects.get("left")):
            self.fake.objects.pop("service default/web")
        if "leave" in text:
            self.fake.objects["left"] = True

    def perform(self, step: Any) -> None:
        if step.id == "label":
            self.fake.objects["service default/web"]["metadata"]["labels"] = {"a": "b"}
        elif not (self.is_spoilt and step.id == "open"):
            super().perform(step)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr("labs.engine.rehearse.SOLVED_WITHIN", 0.0)


LABEL = """
[[steps]]
id = "label"
title = "Label it"
kind = "change"
within = 0
hints = ["a", "b", "c"]
checks = [{ check = "object", kind = "service", name = "web", path = "$.metadata.labels.a", equals = "b" }]
"""
LABELLED = lessons.README.replace("## Debrief", "## Label it\n\nLabel it.\n\n## Debrief")


def walk(tmp_path: Path, **wrong: str) -> Counted:
    directory = lessons.write(tmp_path / "course" / "01-web", lab=lessons.LAB + LABEL, readme=LABELLED)
    for name, text in wrong.items():
        (directory / "wrong" / f"{name}.sh").write_text(text)
    where = Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))
    made = Counted(Course.read(tmp_path / "course"), where, "test")
    made.start(made.course.find("web"))
    return made


def test_a_wrong_word_needs_no_fresh_cluster_after_it(tmp_path: Path) -> None:
    word = WRONG.format(step="find", reason="wrong-answer")
    walked = walk(tmp_path, a=word, b=word, z=WRONG.format(step="open", reason="type"))
    said: list[str] = []
    assert list(wrong_answers(walked, said.append)) == []
    assert said == [f"web: wrong/{name}.sh" for name in ("a", "b", "label", "z")]
    assert walked.clusters == 3  # the start's, one for both words and the first change, one for the second


def test_a_wrong_answer_must_fail_for_its_reason(tmp_path: Path) -> None:
    walked = walk(tmp_path, a=WRONG.format(step="find", reason="no-answer"))
    (problem,) = wrong_answers(walked)
    assert "wrong/a.sh: should fail with no-answer, but: fail wrong-answer" in problem


def test_a_wrong_answer_may_take_a_moment_to_be_in_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labs.engine.rehearse.SOLVED_WITHIN", 5.0)
    monkeypatch.setattr(session, "POLL_SECONDS", 0.01)
    walked = walk(tmp_path, z=WRONG.format(step="open", reason="missing"))
    (walked.lesson.directory / "wrong" / "label.sh").unlink()
    looked, look_once = 0, walked._look_once

    def look(step: Any) -> Outcome:
        nonlocal looked
        looked += 1
        if looked == 3:
            walked.fake.objects.pop("service default/web")
        return look_once(step)

    monkeypatch.setattr(walked, "_look_once", look)
    assert list(wrong_answers(walked)) == []


@pytest.mark.parametrize(
    ("effect", "clusters", "again"),
    [
        ("", 2, []),  # the start's, and one walk for both
        ("spoil", 2, []),  # what the solution can't mend
        ("leave", 3, ["web: wrong/z.sh again"]),  # what makes the other one fail for another reason
    ],
)
def test_steps_are_solved_after_wrong_answers(tmp_path: Path, effect: str, clusters: int, again: list[str]) -> None:
    walked = walk(tmp_path, z=WRONG.format(step="label", reason="different"))
    label = walked.lesson.directory / "wrong" / "label.sh"
    label.write_text(WRONG.format(step="open", reason="type") + effect)
    said: list[str] = []
    assert list(wrong_answers(walked, said.append)) == []
    assert said == ["web: wrong/label.sh", "web: wrong/z.sh", *again]
    assert walked.clusters == clusters


def test_what_is_wrong_on_a_fresh_cluster_is_told_once(tmp_path: Path) -> None:
    walked = walk(tmp_path, z=WRONG.format(step="label", reason="different") + "delete")
    assert list(wrong_answers(walked)) == [
        "web: wrong/z.sh: should fail with different, but: fail missing: there is none"
    ]


def test_a_solution_that_fails_before_a_wrong_answer(tmp_path: Path) -> None:
    walked = walk(tmp_path, a=WRONG.format(step="label", reason="different"))
    (walked.lesson.directory / "wrong" / "label.sh").unlink()

    def perform(step: Any) -> None:
        raise K8snetError("it breaks")

    walked.perform = perform  # type: ignore[method-assign]
    assert list(wrong_answers(walked)) == ["web: wrong/a.sh: before it: it breaks"]
