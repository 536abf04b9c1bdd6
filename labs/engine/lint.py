"""Whether a lesson keeps its promises on paper: what can be seen without a cluster.

What belongs here: the lesson's files. What does not: their form (`spec` refuses wrong ones), how lessons stand to each
other (`course`), and what only a running cluster shows (`rehearse`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from labs.engine.checks import CHECKS, problem_with
from labs.engine.facts import FACTS
from labs.engine.faults import FAULTS
from labs.engine.spec import Lesson, LessonError

LONGEST_SHARED = 24  # characters that a hint may have in common with the solution
MIN_PROSE_WORDS = 20


def problems(lesson: Lesson) -> list[str]:
    """What is wrong with a lesson, each as a sentence that begins with its id."""
    found = [*_names(lesson), *_files(lesson), *_solution(lesson), *_wrong(lesson), *_hints(lesson), *_prose(lesson)]
    return [f"{lesson.id}: {text}" for text in found]


def _names(lesson: Lesson) -> Iterator[str]:
    ids = [step.id for step in lesson.steps]
    for step in lesson.steps:
        if ids.count(step.id) > 1:
            yield f"step {step.id}: given twice"
        named: list[tuple[Any, Any, str]] = [(spec, CHECKS, "check") for spec in step.checks]
        named += [(spec, FAULTS, "fault") for spec in step.faults]
        if step.question is not None:
            named.append((step.question.fact, FACTS, "fact"))
        for spec, table, what in named:
            problem = problem_with(spec, table)
            if problem is not None:
                yield f"step {step.id}: {what}: {problem}"
        if step.prediction is not None and step.prediction.told not in ids[ids.index(step.id) + 1 :]:
            yield f"step {step.id}: predict.told: {step.prediction.told} is no step after it"
        elif step.prediction is not None and not set(step.on) <= set(lesson.step(step.prediction.told).on):
            yield f"step {step.id}: predict.told: {step.prediction.told} can't be done everywhere where this can"
        if not set(step.on) & set(lesson.requires.on):
            yield f"step {step.id}: on: the lesson runs nowhere there"
    if not any(step.is_graded for step in lesson.steps):
        yield "no step has a check"


def _files(lesson: Lesson) -> Iterator[str]:
    for step in lesson.steps:
        for directory, names in (("manifests", step.apply), ("files", step.files)):
            for name in names:
                if not (lesson.directory / directory / name).is_file():
                    yield f"step {step.id}: there is no {directory}/{name}"
    for path in sorted((lesson.directory / "manifests").glob("*")):
        try:
            list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            yield f"{path.name}: {error}"


def _solution(lesson: Lesson) -> Iterator[str]:
    if not lesson.solution.is_file():
        yield "there is no solution.sh"
        return
    text = lesson.solution.read_text(encoding="utf-8")
    functions = set(re.findall(r"^step_(\w+)\(\)", text, re.MULTILINE))
    wanted = {step.id.replace("-", "_") for step in lesson.steps if step.is_graded}
    for name in sorted(wanted - functions):
        yield f"solution.sh: there is no function step_{name}"
    for name in sorted(functions - wanted):
        yield f"solution.sh: step_{name} is for no graded step"


def _wrong(lesson: Lesson) -> Iterator[str]:
    try:
        wrong = lesson.wrong
    except LessonError as error:
        yield str(error)
        return
    graded = {step.id for step in lesson.steps if step.is_graded}
    for one in wrong:
        if one.step not in graded:
            yield f"{one.path.name}: {one.step} is no graded step"
    if not wrong:
        yield "there is no wrong answer in wrong/"
    for path in [lesson.solution, *(one.path for one in wrong)]:
        if path.is_file() and not os.access(path, os.X_OK):
            yield f"{path.name}: is not executable"


def _hints(lesson: Lesson) -> Iterator[str]:
    """No hint may hold a command line of the solution."""
    for step in lesson.steps:
        lines = [" ".join(line.split()) for line in lesson.solution_of(step).splitlines() if line.strip()]
        for number, hint in enumerate(step.hints, 1):
            shared = next(
                (line for line in lines if len(line) >= LONGEST_SHARED and line in " ".join(hint.split())), None
            )
            if shared is not None:
                yield f"step {step.id}: hint {number} holds the solution: {shared!r}"
        if step.is_graded and len(set(step.hints)) != len(step.hints):
            yield f"step {step.id}: two hints say the same"


def _prose(lesson: Lesson) -> Iterator[str]:
    if len(lesson.introduction.split()) < MIN_PROSE_WORDS:
        yield "README.md: no introduction before the first step"
    for step in lesson.steps:
        if not lesson.section(step).text:
            yield f"README.md: nothing below {step.title!r}"
    if len(lesson.debrief.split()) < MIN_PROSE_WORDS:
        yield "README.md: the debrief says nothing"
