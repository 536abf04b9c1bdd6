"""What can be seen on paper is seen: each mistake in a lesson's files has its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labs.engine import lint
from labs.engine.spec import read
from tests.labs.engine import lessons

LAB, README, SOLUTION, WRONG = lessons.LAB, lessons.README, lessons.SOLUTION, lessons.WRONG
FIX = """
[[steps]]
id = "mend"
title = "Mend it"
kind = "fix"
hints = ["a", "b", "c"]
fault = { fault = "rule", node = "node1", rule = "FORWARD -j DROP" }
checks = [{ check = "service", name = "web" }]
"""
MENDED = {
    "readme": README.replace("## Debrief", "## Mend it\n\nMend it.\n\n## Debrief"),
    "solution": SOLUTION + "step_mend() {\n    true\n}\n",
}


def problems(tmp_path: Path, **files: str) -> list[str]:
    return lint.problems(read(lessons.write(tmp_path / "01-web", **files)))


def test_a_sound_lesson(tmp_path: Path) -> None:
    assert problems(tmp_path, manifest=lessons.MANIFEST) == []
    assert lint.problems(read(lessons.write(tmp_path / "02-web", lab=LAB + FIX, **MENDED))) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('check = "service"', 'check = "svc"', "step open: check: there is no 'svc'; known: "),
        ('type = "NodePort"', 'kind = "NodePort"', "step open: check: service: got an unexpected keyword argument"),
        ('name = "web"\ntype', "type", "step open: check: service: missing a required argument: 'name'"),
        ('fact = "object"', 'fact = "thing"', "step find: fact: there is no 'thing'; known: "),
        ('name = "web", path', "path", "step find: fact: object: missing a required argument: 'name'"),
        ('told = "find"', 'told = "guess"', "step guess: predict.told: guess is no step after it"),
        ('told = "find"', 'told = "lost"', "step guess: predict.told: lost is no step after it"),
        (
            'kind = "answer"',
            'kind = "answer"\non = ["miniature"]\nwhy = "So."',
            "step guess: predict.told: find can't be done everywhere where this can",
        ),
        ("within = 0", 'apply = ["broken.yaml"]', "step open: there is no manifests/broken.yaml"),
        ("within = 0", 'files = ["web.yaml"]', "step open: there is no files/web.yaml"),
        ('["Types.", "NodePort."', '["Types.", "Types."', "step open: two hints say the same"),
        (
            '"kubectl edit."',
            '"Try kubectl patch service web -p \'{\\"spec\\":{\\"type\\":\\"NodePort\\"}}\' now."',
            "step open: hint 3 holds the solution: 'kubectl patch service web -p ",
        ),
    ],
)  # fmt: skip
def test_lab_toml(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert LAB.count(old) == 1
    (found,) = problems(tmp_path, lab=LAB.replace(old, new))
    assert found.startswith(f"web: {problem}")


def test_faults(tmp_path: Path) -> None:
    lab = LAB + FIX.replace('node = "node1"', 'host = "node1"')
    (found,) = problems(tmp_path, lab=lab, **MENDED)
    assert found.startswith("web: step mend: fault: rule: missing a required argument: 'node'")


def test_a_step_given_twice(tmp_path: Path) -> None:
    lab = LAB.replace('id = "open"', 'id = "find"')
    found = problems(tmp_path, lab=lab, wrong=WRONG.replace("step: open", "step: find"))
    assert found.count("web: step find: given twice") == 2
    assert "web: solution.sh: step_open is for no graded step" in found


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"solution": SOLUTION.replace("step_open()", "step_opened()")}, "solution.sh: there is no function step_open"),
        ({"solution": SOLUTION + "step_more() {\n:\n}\n"}, "solution.sh: step_more is for no graded step"),
        ({"wrong": WRONG.replace("# fails: type\n", "")}, "label.sh: has no line `# fails: …`"),
        ({"wrong": WRONG.replace("step: open", "step: look")}, "label.sh: look is no graded step"),
        ({"readme": README.replace("There is one Service here, and", "And")}, None),
        ({"readme": README.replace(README[README.index("There"): README.index("## Guess")], "Hello.\n\n")},
         "README.md: no introduction before the first step"),
        ({"readme": README.replace("Where is it?\n", "")}, "README.md: nothing below 'Find its address'"),
        ({"readme": README[: README.index("You have seen")]}, "README.md: the debrief says nothing"),
        ({"manifest": "a: [1\n"}, "start.yaml: while parsing a flow sequence"),
    ],
)  # fmt: skip
def test_the_other_files(tmp_path: Path, files: dict[str, Any], problem: str | None) -> None:
    found = problems(tmp_path, **files)
    assert found == [] if problem is None else any(text.startswith("web: ") and problem in text for text in found)


def test_a_lesson_without_a_graded_step(tmp_path: Path) -> None:
    lab = LAB[: LAB.index("[[steps]]")] + '[[steps]]\nid = "look"\ntitle = "Look"\nkind = "read"\n'
    readme = "# A\n\n" + "word " * 20 + "\n\n## Look\n\nLook.\n\n## Debrief\n\n" + "word " * 20 + "\n"
    assert "web: no step has a check" in problems(tmp_path, lab=lab, readme=readme)


def test_scripts_that_are_missing_or_can_not_be_run(tmp_path: Path) -> None:
    directory = lessons.write(tmp_path / "01-web")
    lesson = read(directory)
    (directory / "wrong/label.sh").chmod(0o644)
    (directory / "solution.sh").chmod(0o644)
    assert lint.problems(lesson) == ["web: solution.sh: is not executable", "web: label.sh: is not executable"]
    (directory / "wrong/label.sh").unlink()
    (directory / "solution.sh").unlink()
    assert lint.problems(lesson) == ["web: there is no solution.sh", "web: there is no wrong answer in wrong/"]
