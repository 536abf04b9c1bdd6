"""What lessons look like: everything that matters is there, at any width, without colour, and nothing is cut."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from labs.engine import tell
from labs.engine.course import Course
from labs.engine.outcome import Outcome, Result, failed, passed
from labs.engine.progress import Home, Progress
from labs.engine.session import Hint, Report
from labs.engine.spec import HINTS, Lesson
from tests.labs.engine import lessons

LONG = (
    "sudo k8snet-lab exec default/client -- curl -sS --max-time 3 http://lets-ship-it.fastapi.svc.cluster.local:8000/"
)
README = lessons.README.replace(
    "Who answers?", f"Who answers? See [the page](docs/dns.md).\n\n```console\n$ {LONG}\n```"
)
FILES = Path("/home/me/k8snet-lab/web")


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    lessons.write(tmp_path / "01-web", readme=README)
    (found,) = Course.read(tmp_path).lessons
    return found


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(Home(tmp_path / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid())))


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest) -> int:
    columns: int = request.param
    return columns


def printed(what: RenderableType, width: int) -> list[str]:
    """The lines, as where there is no colour."""
    console = Console(width=width, file=io.StringIO(), no_color=True, highlight=False)
    console.print(what, crop=False)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    return [line.rstrip() for line in text.splitlines()]


def words(lines: list[str]) -> str:
    """The text without line ends."""
    return " ".join(" ".join(lines).split())


def test_a_lesson_with_all_its_steps(lesson: Lesson, width: int) -> None:
    lines = printed(tell.whole(lesson, 13, FILES), width)
    assert lines[0] == "1. A web server  5 minutes, 4 steps, lesson 1 of 13"
    assert f"  $ {LONG}" in lines, "a command stays one line, however long"
    assert all(len(line) <= width for line in lines if LONG not in line)
    text = words(lines)
    assert lesson.introduction in text
    for number, step in enumerate(lesson.steps, 1):
        assert f"Step {number} of 4: {step.title}" in lines
    assert "  a) One pod" in lines
    assert "  b) All pods" in lines
    assert "See the page (docs/dns.md)." in text
    assert "  one …" in lines
    assert "→ Commit to a guess: sudo k8snet-lab answer a|b" in lines
    assert "→ Answer with an IP address: sudo k8snet-lab answer VALUE" in lines
    assert "→ When you have changed it: sudo k8snet-lab check" in lines


def test_the_step_that_is_to_be_done_and_what_leads_up_to_it(lesson: Lesson, width: int) -> None:
    lines = printed(tell.current(lesson, lesson.step("find"), FILES), width)
    assert [line for line in lines if line.startswith("Step ")] == [
        "Step 2 of 4: Look",
        "Step 3 of 4: Find its address",
    ]


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (
            failed("no-answer", expected="x " * 90 + "end", seen="nothing at all", look=LONG),
            ["✗ Step 4: Open it", "  expected: x x", "  seen: nothing at all", f"  look at: {LONG}"],
        ),
        (
            Outcome(Result.BLOCKED, "cluster c is not up", look="sudo k8snet-lab reset"),
            ["! Step 4: Open it", "  something is missing: cluster c is not up", "  look at: sudo k8snet-lab reset"],
        ),
        (
            Outcome(Result.ERROR, "KeyError: 'x'"),
            ["! Step 4: Open it", "  this is a defect of the lesson, not yours: KeyError: 'x'"],
        ),
        (passed("it is open"), ["✓ Step 4: Open it", "  seen: it is open"]),
    ],
)
def test_outcomes(lesson: Lesson, progress: Progress, width: int, outcome: Outcome, wanted: list[str]) -> None:
    step = lesson.step("open")
    now = None if outcome.passed else step
    lines = printed(tell.report(Report(lesson, [(step, outcome)], now), progress, FILES), width)
    for want in wanted:
        assert any(line.startswith(want) for line in lines), want
    assert outcome.expected.strip() in words(lines)
    assert ("Lesson 1 is done." in lines) == outcome.passed
    assert (lesson.debrief in words(lines)) == outcome.passed


def test_only_the_failure_is_shown_and_not_the_step_again(lesson: Lesson, progress: Progress) -> None:
    step = lesson.step("open")
    lines = printed(
        tell.report(Report(lesson, [(step, failed("x", expected="a", seen="b", look="c"))], step), progress, FILES), 80
    )
    assert lines == ["✗ Step 4: Open it", "  expected: a", "  seen: b", "  look at: c"]


def test_the_next_step_follows_a_pass(lesson: Lesson, progress: Progress, width: int) -> None:
    report = Report(lesson, [(lesson.step("find"), passed("10.96.0.7 is right"))], lesson.step("open"))
    assert "Step 4 of 4: Open it" in printed(tell.report(report, progress, FILES), width)


@pytest.mark.parametrize(
    ("guess", "told"),
    [
        ("a", "You guessed a; it is b: All pods There are three."),
        ("b", "You guessed right: All pods There are three."),
    ],
)
def test_a_guess_is_told_when_it_can_be_known(
    lesson: Lesson, progress: Progress, width: int, guess: str, told: str
) -> None:
    with progress.change("web", "guess") as entry:
        entry.answer = guess
    report = Report(lesson, [(lesson.step("find"), passed("it is"))], lesson.step("open"))
    assert told in words(printed(tell.report(report, progress, FILES), width))
    early = Report(lesson, [(lesson.step("guess"), passed("kept"))], lesson.step("find"))
    assert "You guessed" not in words(printed(tell.report(early, progress, FILES), width))


def test_hints(lesson: Lesson, width: int) -> None:
    step = lesson.step("find")
    assert printed(tell.hint(Hint(step, 2, step.hints[1]), lesson), width) == ["Hint 2 of 3:", "kubectl shows it."]
    sees = printed(tell.hint(Hint(step, 0, outcome=failed("x", expected="a", seen="b", look="c")), lesson), width)
    assert sees[:2] == ["What the check sees:", "✗ Step 3: Find its address"]
    assert "sudo k8snet-lab solve --step" in words(printed(tell.hint(Hint(step, HINTS + 1), lesson), width))


def test_the_course(tmp_path: Path, progress: Progress, width: int) -> None:
    shop = lessons.LAB.replace('id = "web"', 'id = "shop"', 1).replace("order = 1", "order = 12")
    shop = shop.replace("One Service.", "Word " * 40 + "end.")
    for name, text in (("01-web", lessons.LAB), ("12-shop", shop), ("13-door", shop.replace('"shop"', '"door"'))):
        lessons.write(tmp_path / "course" / name, lab=text)
    course = Course.read(tmp_path / "course")
    for step in ("guess", "look", "find", "open"):
        with progress.change("web", step) as entry:
            entry.passed = 1.0
    with progress.change("shop", "guess") as entry:
        entry.passed = 1.0
    lines = printed(tell.course(course, progress, {"web"}, "shop"), width)
    text = words(lines)
    assert all(len(line) <= width for line in lines)
    assert any(line.startswith("✓  1   A web server  web") and line.endswith("5    4/4") for line in lines)
    assert any(line.startswith("▸  12  A web server  shop") and line.endswith("5    1/4") for line in lines)
    assert any(line.startswith("   12  A web server  door") and line.endswith("5    0/4") for line in lines)
    assert text.count("Word " * 40 + "end.") == 2
    assert "5 of 12 steps" in text
