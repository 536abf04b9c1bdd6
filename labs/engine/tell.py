"""How a lesson looks on a terminal: prose, outcomes, hints, the course. Pure: values in, rich renderables out.

What belongs here: words and their order. What does not: printing (`labs.lessoncommands`), and what is told (`session`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import CodeBlock, Markdown
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from labs.engine.course import Course
from labs.engine.outcome import Outcome, Result
from labs.engine.progress import Progress
from labs.engine.session import Hint, Report
from labs.engine.spec import HINTS, Kind, Lesson, Step

MARKS = {
    Result.PASS: ("✓", "green"),
    Result.FAIL: ("✗", "bold red"),
    Result.ERROR: ("!", "yellow"),
    Result.BLOCKED: ("!", "yellow"),
}
ASKS = {
    Kind.PREDICT: "Commit to a guess: sudo k8snet-lab answer {letters}",
    Kind.ANSWER: "Answer with {form}: sudo k8snet-lab answer VALUE",
    Kind.OBSERVE: "When you have seen it: sudo k8snet-lab check",
    Kind.CHANGE: "When you have changed it: sudo k8snet-lab check",
    Kind.FIX: "When you think that it is mended: sudo k8snet-lab check",
    Kind.WRITE: "Edit {files}, then: sudo k8snet-lab check",
}


COMMANDS = ("sudo ", "kubectl ", "k8snet-")


class _Code(CodeBlock):
    """A block as it stands: what is longer than the terminal is wide stays one line, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in str(self.text).rstrip().splitlines():
            yield _whole_line(f"  {line}", "bold" if line.startswith(("$ ", "> ")) else "")


class Prose(Markdown):
    """Markdown as lessons are written in it."""

    elements = {**Markdown.elements, "fence": _Code, "code_block": _Code}  # noqa: RUF012 - rich's own attribute

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)


def _whole_line(line: str, style: str = "") -> Text:
    return Text(line, style=style, no_wrap=True, overflow="ignore")


def opening(lesson: Lesson, number: int) -> RenderableType:
    """What a lesson begins with."""
    title = Text(f"{lesson.order}. {lesson.title}", style="bold")
    title.append(
        f"  {lesson.minutes} minutes, {len(lesson.steps)} steps, lesson {lesson.order} of {number}", style="dim"
    )
    return Group(title, Text(), Prose(lesson.introduction), Text())


def step(lesson: Lesson, one: Step, workspace: Path) -> RenderableType:
    """A step's prose, and how to go on."""
    number = lesson.steps.index(one) + 1
    heading = Text(f"Step {number} of {len(lesson.steps)}: {one.title}", style="bold cyan")
    parts: list[RenderableType] = [heading, Text(), Prose(lesson.section(one).text), Text()]
    if one.prediction is not None:
        parts += [Text(f"  {letter}) {text}") for letter, text in one.prediction.choices.items()] + [Text()]
    ask = ASKS.get(one.kind)
    if ask is not None:
        letters = "|".join(one.prediction.choices) if one.prediction else ""
        form = one.question.form if one.question else ""
        files = ", ".join(str(workspace / name) for name in one.files)
        parts += [Text("→ " + ask.format(letters=letters, form=form, files=files), style="bold"), Text()]
    return Group(*parts)


def current(lesson: Lesson, now: Step, workspace: Path) -> RenderableType:
    """The step that is to be done, with the ones before it that are only to be read and lead up to it."""
    index = lesson.steps.index(now)
    first = index
    while first and lesson.steps[first - 1].kind is Kind.READ:
        first -= 1
    return Group(*(step(lesson, one, workspace) for one in lesson.steps[first : index + 1]))


def whole(lesson: Lesson, number: int, workspace: Path) -> RenderableType:
    """A lesson from its title to its last step."""
    return Group(opening(lesson, number), *(step(lesson, one, workspace) for one in lesson.steps))


def debrief(lesson: Lesson) -> RenderableType:
    """What a lesson ends with."""
    return Group(Text(f"Lesson {lesson.order} is done.", style="bold green"), Text(), Prose(lesson.debrief))


def report(found: Report, progress: Progress, workspace: Path) -> RenderableType:
    """What a check found: passes, the first failure, and what comes next."""
    parts: list[RenderableType] = []
    for one, outcome in found.walked:
        parts.append(_outcome(found.lesson, one, outcome))
        parts += _told(found.lesson, one, outcome, progress)
    if found.now is None:
        parts += [Text(), debrief(found.lesson), Text(), Text("→ The next one: sudo k8snet-lab start", style="bold")]
    elif not found.walked or found.entered or found.walked[-1][1].passed:
        parts += [Text(), current(found.lesson, found.now, workspace)]
    return Group(*parts)


def _outcome(lesson: Lesson, one: Step, outcome: Outcome) -> RenderableType:
    mark, style = MARKS[outcome.result]
    line = Text(f"{mark} ", style=style)
    line.append(f"Step {lesson.steps.index(one) + 1}: {one.title}", style="bold" if not outcome.passed else "")
    details: list[tuple[str, str]] = []
    if outcome.result is Result.FAIL:
        details = [("expected", outcome.expected), ("seen", outcome.seen), ("look at", outcome.look)]
    elif outcome.result is Result.PASS:
        details = [("seen", outcome.seen)]
    else:
        why = "this is a defect of the lesson, not yours" if outcome.result is Result.ERROR else "something is missing"
        details = [(why, outcome.seen), ("look at", outcome.look)]
    return Group(line, *(_detail(key, value) for key, value in details if value))


def _detail(key: str, value: str) -> RenderableType:
    """One thing found. A command stays one line, so that it can be copied."""
    if value.startswith(COMMANDS):
        return _whole_line(f"  {key}: ", "dim").append(value, style="not dim")
    return Padding(Text(f"{key}: ", style="dim").append(value, style="not dim"), (0, 0, 0, 2))


def _told(lesson: Lesson, one: Step, outcome: Outcome, progress: Progress) -> Iterator[RenderableType]:
    """What was guessed before, now that it can be known."""
    if not outcome.passed:
        return
    for before in lesson.steps:
        prediction = before.prediction
        if prediction is None or prediction.told != one.id:
            continue
        guess = progress.step(lesson.id, before.id).answer
        right = prediction.choices[prediction.right]
        verdict = "You guessed right" if guess == prediction.right else f"You guessed {guess}; it is {prediction.right}"
        yield Padding(Text(f"{verdict}: {right} {prediction.because}", style="italic"), (1, 0, 0, 2))


def hint(found: Hint, lesson: Lesson) -> RenderableType:
    """One hint."""
    if found.outcome is not None:
        return Group(Text("What the check sees:", style="bold"), _outcome(lesson, found.step, found.outcome))
    if found.level > HINTS:
        return Text(
            "There are no more hints. To have this step done for you: sudo k8snet-lab solve --step", style="bold"
        )
    return Group(Text(f"Hint {found.level} of {HINTS}:", style="bold"), Prose(found.text))


def course(lessons: Course, progress: Progress, done: Collection[str], opened: str | None) -> RenderableType:
    """All lessons, and how far the learner is."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "", "lesson", "minutes", "steps"):
        table.add_column(
            column, justify="right" if column in ("minutes", "steps") else "left", no_wrap=column != "lesson"
        )
    for one in lessons.lessons:
        passed = len(progress.passed(one.id) & {step.id for step in one.steps})
        mark = "✓" if one.id in done else "▸" if one.id == opened else ""
        title = Text(one.title, style="" if one.id in done else "bold")
        title.append(f"  {one.id}{', also on kind' if 'kind' in one.worlds else ''}\n", style="dim")
        title.append(one.summary, style="dim")
        table.add_row(mark, str(one.order), title, str(one.minutes), f"{passed}/{len(one.steps)}")
    return Group(table, Text(), bar(lessons, progress))


def bar(lessons: Course, progress: Progress) -> RenderableType:
    """How much of the course is done, by steps."""
    passed = sum(len(progress.passed(one.id) & {step.id for step in one.steps}) for one in lessons.lessons)
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(lessons.steps or 1, passed, width=40), Text(f"{passed} of {lessons.steps} steps"))
    return grid
