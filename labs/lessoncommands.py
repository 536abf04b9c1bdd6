"""The commands of `k8snet-lab` about lessons: list, show, start, answer, check, hint, solve, reset, stop, lint.

What belongs here: options in, one call each, printing. What does not: anything another program could use
(`labs.engine`). Heavy imports wait until they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from labs.statusline import StatusLine
from tracer.errors import NotRoot, UsageError
from tracer.program import say

if TYPE_CHECKING:
    from labs.engine.session import Report, Walk

WORLDS = ("miniature", "kind")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
EXIT_CODES = {"pass": 0, "fail": 1, "error": 1, "blocked": 3}


def complete_lesson(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The lessons whose names begin so."""
    from labs.engine.course import Course

    return [lesson.id for lesson in Course.read().lessons if lesson.id.startswith(incomplete)]


def add_commands(cli: click.Group, name: Decorator) -> None:
    """Give the group its commands about lessons. `name`: the option that names a cluster."""
    lesson = click.argument("lab", required=False, metavar="[LAB]", shell_complete=complete_lesson)
    output = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)

    @cli.command("list")
    @name
    @output
    def list_(name: str, output: str) -> None:
        """All lessons, and how far you are."""
        walk = _walk(name)
        done = walk.done()
        if output == "json":
            click.echo(json.dumps([_entry(one, done) for one in walk.course.lessons], indent=2))
            return
        from labs.engine import tell

        _print(tell.course(walk.course, walk.progress, done, walk.opened))

    @cli.command()
    @name
    @lesson
    def show(name: str, lab: str | None) -> None:
        """The step that is to be done, or all of a lesson's prose."""
        from labs.engine import tell

        walk = _walk(name)
        if lab is None and walk.opened is not None:
            now = walk.step
            workspace = walk.home.workspace(walk.lesson.id)
            _print(tell.current(walk.lesson, now, workspace) if now else tell.debrief(walk.lesson))
            return
        found = _find(walk, lab)
        _print(tell.whole(found, len(walk.course.lessons), walk.home.workspace(found.id)))

    @cli.command(
        epilog="""\b
Examples:
  sudo k8snet-lab start                 the next lesson that is not done
  sudo k8snet-lab start kube-proxy      one of those that `k8snet-lab list` shows, by name or number
  sudo k8snet-lab start --on kind       on the kind cluster that `k8snet-lab kind create` makes
"""
    )
    @name
    @lesson
    @click.option("--on", type=click.Choice(WORLDS), default="miniature", show_default=True, help="Which cluster.")
    def start(name: str, lab: str | None, on: str) -> None:
        """Open a lesson, on a fresh cluster that it makes; or on a kind cluster that is there."""
        from labs.engine import tell

        walk = _walk(name)
        _require_root()
        found = _find(walk, lab)
        with StatusLine() as status:
            walk.say = status.show
            walk.start(found, on)
        opened, now = walk.lesson, walk.step
        _print(tell.opening(opened, len(walk.course.lessons)))
        if now is not None:
            _print(tell.current(opened, now, walk.home.workspace(opened.id)))

    @cli.command()
    @name
    @click.argument("value")
    @click.option("--later", is_flag=True, help="Note it only; `check` looks at it.")
    def answer(name: str, value: str, later: bool) -> int:
        """Answer the step that is to be done, or commit to a guess."""
        walk = _walk(name)
        walk.answer(value)
        return 0 if later else _check(walk)

    @cli.command()
    @name
    @lesson
    @output
    def check(name: str, lab: str | None, output: str) -> int:
        """Look whether the step is done, and go on to the next.

        Exits with 0 when all steps pass, 1 when a step fails, 3 when something else is missing, such as the cluster.
        """
        walk = _walk(name)
        if lab is not None and walk.course.find(lab).id != walk.lesson.id:
            raise UsageError(
                f"{lab} is not the lesson that is open: {walk.lesson.id}", hint=f"sudo k8snet-lab start {lab}"
            )
        return _check(walk, output)

    @cli.command()
    @name
    def hint(name: str) -> None:
        """Help with the step: first what the check sees, then three hints, each telling more."""
        from labs.engine import tell

        walk = _walk(name)
        _require_root()
        found = walk.hint()
        _print(tell.hint(found, walk.lesson) if found else tell.debrief(walk.lesson))

    @cli.command()
    @name
    @lesson
    @click.option("--step", "one", is_flag=True, help="Only the step that is to be done.")
    def solve(name: str, lab: str | None, one: bool) -> int:
        """Have the lesson, or a step, done for you; it counts as assisted."""
        walk = _walk(name)
        _require_root()
        if lab is not None and walk.opened != walk.course.find(lab).id:
            walk.start(walk.course.find(lab))
        return _tell(walk, walk.solve(one=one))

    @cli.command()
    @name
    @click.option("--step", "one", is_flag=True, help="Only the step that is to be done.")
    @click.option("--all", "everything", is_flag=True, help="Forget all progress.")
    def reset(name: str, one: bool, everything: bool) -> None:
        """Begin the lesson anew, on a fresh cluster (of kind: on the same); what you have passed stays passed."""
        walk = _walk(name)
        _require_root()
        if one and everything:
            raise UsageError("--step or --all, not both")
        with StatusLine() as status:
            walk.say = status.show
            if everything:
                walk.reset_all()
            elif one:
                walk.reset_step()
            else:
                walk.reset()
        say("all progress is forgotten" if everything else f"{walk.lesson.id} begins anew: k8snet-lab show")

    @cli.command()
    @name
    def stop(name: str) -> None:
        """Close the lesson, and end its cluster; one of kind stays. Progress stays."""
        _require_root()
        walk = _walk(name)
        told = {
            None: "no lesson was open",
            "miniature": "the lesson is closed, its cluster is down",
            "kind": f"the lesson is closed; the cluster stays until: kind delete cluster --name {name}",
        }
        on = walk.on
        walk.stop()
        say(told[on])

    @cli.command()
    @lesson
    @click.option("--static", is_flag=True, help="Only what can be seen without a cluster.")
    @click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="So many lessons at once.")
    def lint(lab: str | None, static: bool, jobs: int) -> int:
        """Whether lessons keep their promises: on paper, and walked through on clusters of their own."""
        return _lint(lab, static, jobs)


def _walk(name: str) -> Walk:
    from labs.engine.course import Course
    from labs.engine.progress import home
    from labs.engine.session import Walk

    return Walk(Course.read(), home(), name)


def _find(walk: Walk, lab: str | None) -> Any:
    """The lesson that was named, or the next; the first when all are done."""
    if lab is not None:
        return walk.course.find(lab)
    return walk.course.next_after(walk.done()) or walk.course.lessons[0]


def _entry(lesson: Any, done: set[str]) -> dict[str, Any]:
    return {
        "id": lesson.id,
        "title": lesson.title,
        "order": lesson.order,
        "minutes": lesson.minutes,
        "needs": list(lesson.needs),
        "done": lesson.id in done,
    }


def _check(walk: Walk, output: str = "text") -> int:
    _require_root()
    with StatusLine() as status:
        status.show("looking")
        walk.say = status.show
        report = walk.check()
    if output == "json":
        click.echo(json.dumps(report.to_json(), indent=2))
        return EXIT_CODES[report.result]
    return _tell(walk, report)


def _tell(walk: Walk, report: Report) -> int:
    from labs.engine import tell

    _print(tell.report(report, walk.progress, walk.home.workspace(report.lesson.id)))
    _print(tell.bar(walk.course, walk.progress))
    return EXIT_CODES[report.result]


def _lint(lab: str | None, static: bool, jobs: int) -> int:
    from labs.engine import lint
    from labs.engine.course import Course
    from labs.engine.rehearse import rehearse_all

    course = Course.read()
    lessons = course.lessons if lab is None else [course.find(lab)]
    problems = list(course.problems)
    for lesson in lessons:
        problems += lint.problems(lesson)
    if not static and not problems:
        _require_root()
        problems += rehearse_all(lessons, course, say, jobs)
    for problem in problems:
        click.echo(problem)
    say(f"{len(lessons)} lessons, {len(problems)} problems")
    return 1 if problems else 0


def _require_root() -> None:
    import os

    if os.geteuid() != 0:
        raise NotRoot("lessons run on a cluster of network namespaces, which needs root", hint="run it with sudo")


def _print(what: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(what, crop=False)  # a command that is longer than a line is still one line
