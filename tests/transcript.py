"""docs/lesson.md: a whole lesson as a learner sees it, made by walking through it. scripts/transcript calls it.

The learner types what the lesson's prose says and what its solution does, looks too early once, and asks for a hint.

What belongs here: what is typed, in which order, and the page around it. What does not: the lesson, and its words.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from labs.engine import facts
from labs.engine.course import Course
from labs.engine.progress import Home
from labs.engine.session import Walk
from labs.engine.spec import Step

PAGE = Path(__file__).parents[1] / "docs" / "lesson.md"
LESSON = "endpoints"
COLUMNS = 100
SECONDS = 60.0
HEAD = """# A lesson, from its first command to its last

What a learner sees in the lesson "{title}". `scripts/transcript` made this page by walking through the lesson: only
this paragraph was written by hand. What the learner typed stands after `$`.

"""


class Screen:
    """What was typed, and what was printed."""

    def __init__(self, env: dict[str, str], directory: Path) -> None:
        self.lines: list[str] = []
        self._env = {**env, "COLUMNS": str(COLUMNS)}
        self._directory = directory

    def type(self, command: str) -> None:
        """Run a command, and keep what it prints."""
        done = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            env=self._env,
            cwd=self._directory,
            check=False,
        )
        first, *more = command.splitlines()
        printed = done.stdout.replace(self._env["K8SNET_CLUSTER"], "k8snet")
        printed = printed.replace(self._env["K8SNET_LAB_FILES"], "~/k8snet-lab")
        self.lines += [f"$ {first}", *(f"> {line}" for line in more)]
        self.lines += [line.rstrip() for line in printed.splitlines()] + [""]


def write(lesson_id: str) -> str:
    """The page about a lesson."""
    course = Course.read()
    lesson = course.find(lesson_id)
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory, "k8snet"), Path(directory, "files"), (os.geteuid(), os.getegid()))
        walk = Walk(course, home, f"page-{secrets.token_hex(4)}")
        try:
            walk.start(lesson)
            with walk.shell() as env:
                screen = Screen(env, walk.files)
                screen.type(f"sudo k8snet-lab start {lesson.id}")
                _walk_through(walk, screen)
        finally:
            walk.reload()
            walk.stop()
    text = "\n".join(f"    {line}".rstrip() for line in screen.lines).rstrip()
    return HEAD.format(title=lesson.title) + text + "\n"


def _walk_through(walk: Walk, screen: Screen) -> None:
    walk.reload()
    tried, steps = False, walk.lesson.steps
    typed = 0  # steps whose blocks have been typed
    while (step := walk.step) is not None:
        if step.is_graded and step.question is None and not tried:
            for command in ("check", "hint", "hint"):
                screen.type(f"sudo k8snet-lab {command}")
            tried = True
        for one in steps[typed : steps.index(step) + 1]:
            for text in (command.text for block in walk.lesson.section(one).blocks for command in block.commands):
                screen.type(text)
        typed = steps.index(step) + 1
        _do(walk, step, screen)
        walk.reload()
        if walk.step is step:
            raise SystemExit(f"{walk.lesson.id}: {step.id} is not done:\n" + "\n".join(screen.lines[-20:]))


def _do(walk: Walk, step: Step, screen: Screen) -> None:
    """Do what a step asks for."""
    if step.prediction is not None:
        screen.type(f"sudo k8snet-lab answer {step.prediction.right}")
    elif step.question is not None:
        fact = step.question.fact
        right = facts.expected(walk.context(step), fact.name, fact.parameters)
        screen.type(f"sudo k8snet-lab answer {min(right)}")
    else:
        if not walk.look(step, 0.0).passed:
            screen.type(walk.lesson.solution_of(step))
        screen.type("sudo k8snet-lab check")


if __name__ == "__main__":
    PAGE.write_text(write(sys.argv[1] if len(sys.argv) > 1 else LESSON))
