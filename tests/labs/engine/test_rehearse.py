"""Lessons are walked through as learners would, right and wrong, with no more fresh clusters than it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from labs.engine import session
from labs.engine.course import Course
from labs.engine.progress import Home
from labs.engine.rehearse import wrong_answers
from tests.labs.engine import lessons
from tests.labs.engine.test_session import Paper

WRONG = "#!/bin/bash\n# step: {step}\n# fails: {reason}\n"


class Counted(Paper):
    """A walk that counts its clusters, and whose scripts answer as their name says."""

    clusters = 0

    def _start_miniature(self, lesson: Any) -> None:
        super()._start_miniature(lesson)
        self.clusters += 1

    def script(self, text: str, what: str) -> None:
        if "# step: find" in text:
            self.answer("10.96.0.8")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr("labs.engine.rehearse.SOLVED_WITHIN", 0.0)


def walk(tmp_path: Path, **wrong: str) -> Counted:
    directory = lessons.write(tmp_path / "course" / "01-web")
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
