"""Walking through a lesson: start, answer, check, hint, solve, reset, stop.

    start ─▶ cluster as the lesson requires ─▶ enter the first step ─▶ check ─▶ enter the next ─▶ … ─▶ debrief

A step is entered when the one before it is done: then its manifests are applied, its faults injected, its files copied.
Steps that are only to be read are done by being shown.

What belongs here: the order of things, and when a pass counts. What does not: looking (`checks`), keeping (`progress`),
words (`tell`), printing, and what a learner's shell is (`shell`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labs.engine import facts, faults, recorder, shell, wording
from labs.engine.checks import Context, check
from labs.engine.course import Course
from labs.engine.outcome import Outcome, Result, failed, passed
from labs.engine.progress import Home, Progress, Session, read_session, write_session
from labs.engine.spec import HINTS, Kind, Lesson, Step
from labs.engine.stage import MiniatureStage, Stage
from labs.engine.undo import Undo
from labs.engine.world import BEGIN_ANEW, Blocked, Ran, World, ran
from tracer.errors import K8snetError, MissingError, UsageError

POLL_SECONDS = 0.25
CONFIRM_SECONDS = 0.2
SOLVE_SECONDS = 120.0
SOLVED_WITHIN = 10.0  # what a solution does may take a moment to be in effect

Say = Callable[[str], None]


class NoLesson(MissingError):
    """No lesson is open."""


@dataclass(slots=True)
class Report:
    """What a check found. `walked`: each step that was looked at, and its outcome, in order.

    `now`: the step that is to be done; None when the lesson is finished. `entered`: it was entered by this check.
    """

    lesson: Lesson
    walked: list[tuple[Step, Outcome]] = field(default_factory=list)
    now: Step | None = None
    entered: bool = False

    @property
    def result(self) -> Result:
        """PASS when the lesson is finished; else what keeps it from that."""
        if self.now is None:
            return Result.PASS
        last = self.walked[-1][1].result if self.walked else Result.FAIL
        return Result.FAIL if last is Result.PASS else last

    def to_json(self) -> dict[str, Any]:
        """The report as a document for programs."""
        return {
            "lesson": self.lesson.id,
            "result": self.result,
            "now": None if self.now is None else self.now.id,
            "steps": [{"id": step.id, **asdict(outcome)} for step, outcome in self.walked],
        }


@dataclass(frozen=True, slots=True)
class Hint:
    """What helps with a step. `level`: 0 what the check saw (`outcome`), 1 to 3 the author's `text`, 4: no more."""

    step: Step
    level: int
    text: str = ""
    outcome: Outcome | None = None


class Walk:
    """A learner's way through the course. `cluster`: the name of the one that lessons run on."""

    def __init__(self, course: Course, where: Home, cluster: str, say: Say = lambda _: None) -> None:
        self.course = course
        self.home = where
        self.progress = Progress(where)
        self.say = say
        self._cluster = cluster
        self._session = read_session(where)
        self._stages: dict[tuple[str, str], Stage] = {}

    # ---- which lesson, which step ----

    @property
    def lesson(self) -> Lesson:
        """The lesson that is open, as it reads on its cluster. Raises NoLesson."""
        session = self._open
        return wording.lesson(self.course.find(session.lesson), session.world, session.words)

    def worded(self, path: Path) -> str:
        """One of the lesson's files, as it reads on its cluster."""
        return wording.text(path.read_text(encoding="utf-8"), self._open.words)

    @property
    def opened(self) -> str | None:
        """The id of the lesson that is open, if one is."""
        return None if self._session is None else self._session.lesson

    @property
    def step(self) -> Step | None:
        """The step that is to be done; None when the lesson is finished."""
        done = self._open.done
        return next((step for step in self.lesson.steps if step.id not in done), None)

    @property
    def world(self) -> World:
        """The cluster that the open lesson runs on."""
        return self._stage(self._open.world, self._open.cluster).world

    def _stage(self, on: str, cluster: str) -> Stage:
        """What a lesson stands on; made once, since one of kind remembers where its nodes are."""
        if (on, cluster) not in self._stages:
            if on == "kind":
                from labs.engine.kind.stage import KindStage

                self._stages[on, cluster] = KindStage(cluster, self.home)
            else:
                self._stages[on, cluster] = MiniatureStage(cluster)
        return self._stages[on, cluster]

    @property
    def on(self) -> str | None:
        """What the open lesson runs on: miniature, kind; None when none is open."""
        return None if self._session is None else self._session.world

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise NoLesson("no lesson has been started", hint="sudo k8snet-lab start")
        return self._session

    def done(self) -> set[str]:
        """The ids of the lessons of which every step was passed."""
        return {
            lesson.id
            for lesson in self.course.lessons
            if {step.id for step in lesson.steps} <= self.progress.passed(lesson.id)
        }

    # ---- start, stop, reset ----

    def start(self, lesson: Lesson, on: str = "miniature") -> None:
        """Open a lesson on a fresh cluster; one that was open before is closed.

        Raises UsageError, NotRoot, or K8snetError when the cluster can't be had.
        """
        if on not in lesson.requires.on:
            only = " or ".join(lesson.requires.on)
            hint = f"sudo k8snet-lab start {lesson.id}"
            raise UsageError(f"{lesson.id} can't run on {on}, only on {only}", hint=hint)
        if on == "kind":
            self.say("looking at the kind cluster")
        stage = self._stage(on, self._cluster)
        stage.check(lesson)
        self.stop()
        try:
            with self._prepared_trace(lesson) as trace:
                stage.make(lesson, self.say)
                self._session = Session(lesson.id, on, self._cluster)
                self._session.words = stage.words()
                if trace is not None:
                    self.say("live trace")
                    trace.begin(self.world.kubeconfig, *stage.owner())
            self._enter()
        except BaseException:
            recorder.stop(self.home)  # also where there is no session yet, which `stop` would close
            self.stop()
            raise

    def _prepared_trace(self, lesson: Lesson) -> AbstractContextManager[recorder.Prepared | None]:
        if not lesson.requires.records:
            return nullcontext()
        return recorder.prepared(self.home, rewrites_expected=lesson.requires.proxy == "ebpf")

    def stop(self) -> bool:
        """Close the lesson, and end its cluster unless that is kind's; false when none was open. Progress stays."""
        if self._session is None:
            return False
        recorder.stop(self.home)
        lesson: Lesson | None = None
        with suppress(K8snetError):  # one that another version knew
            lesson = self.lesson
        self._stage(self._session.world, self._session.cluster).clear(lesson, self._session.undos)
        self._session = None
        write_session(self.home, None)
        return True

    def reset(self) -> None:
        """The open lesson from its beginning, on a fresh cluster (on kind: the same); progress stays."""
        self._cluster = self._open.cluster
        self.start(self.course.find(self._open.lesson), self._open.world)

    def reset_step(self) -> None:
        """The step that is to be done, from its beginning: a fresh cluster, and the steps before it solved in it."""
        done = [step for step in self.lesson.steps if step.id in self._open.done]
        answers = self._open.answers
        self.reset()
        for step in done:
            self._open.answers = {**answers, **self._open.answers}
            if step.id not in self._open.done:
                self.perform(step)
                self._open.done.append(step.id)
                self._enter()

    def reset_all(self) -> None:
        """Forget all progress, and close the lesson."""
        self.stop()
        self.progress.forget()

    # ---- entering ----

    def _enter(self) -> None:
        """Prepare the step that is to be done; those that are only to be read are done then."""
        while (step := self.step) is not None:
            if step.id not in self._open.entered:
                self._prepare(step)
                self._open.entered[step.id] = time.time()
            if step.kind is not Kind.READ:
                break
            self._pass(step)
        self._save()

    def _prepare(self, step: Step) -> None:
        lesson = self.lesson
        if step.apply or step.faults:
            self.say(f"preparing step {lesson.steps.index(step) + 1}")
        for name in step.apply:
            text = self.worded(lesson.directory / "manifests" / name)
            _must(self.world.apply(text), f"kubectl apply {name}")
        for fault in step.faults:
            faults.inject(self.world, fault.name, fault.parameters, self._keep)
        workspace = self.home.workspace(lesson.id)
        if step.files:
            self.home.make(workspace)
        for name in step.files:
            text = self.worded(lesson.directory / "files" / name)
            (workspace / name).write_text(text, encoding="utf-8")
            self.home.own(workspace / name)

    def _keep(self, one: Undo) -> None:
        """Write down at once what takes a fault back: whatever comes, `stop` finds it."""
        self._open.undos.append(one)
        self._save()

    def _pass(self, step: Step, *, assisted: bool = False) -> None:
        if step.id in self._open.done:
            return
        self._open.done.append(step.id)
        with self.progress.change(self.lesson.id, step.id) as entry:
            entry.passed = time.time()
            entry.assisted = assisted
            entry.answer = self._open.answers.get(step.id)

    def _save(self) -> None:
        write_session(self.home, self._open)

    # ---- answer, check ----

    def answer(self, text: str) -> None:
        """Note an answer to the step that is to be done. Raises UsageError when that asks for none."""
        step = self.step
        if step is None or step.kind not in (Kind.ANSWER, Kind.PREDICT):
            raise UsageError("the step that is to be done asks for no answer", hint="k8snet-lab show")
        given = text.strip()
        if step.prediction is not None:
            given = given.lower()
            if given not in step.prediction.choices:
                raise UsageError(f"{text}: choose one of {', '.join(step.prediction.choices)}", hint="k8snet-lab show")
        self._open.answers[step.id] = given
        self._save()

    def check(self) -> Report:
        """Look at the step that is to be done, trying again for as long as it says; then on, as far as it goes."""
        self._enter()  # again, where that failed
        report = Report(self.lesson)
        first = True
        while (step := self.step) is not None:
            if step.faults and not first:  # this check has just broken it: nobody has mended it yet
                report.entered = True
                break
            outcome = self.look(step, step.within if first else 0.0)
            if outcome.passed:
                self._pass(step)
                self._enter()
            elif not first:
                report.entered = True
                break
            report.walked.append((step, outcome))
            if not outcome.passed:
                break
            first = False
        report.now = self.step
        return report

    def look(self, step: Step, within: float) -> Outcome:
        """A step's outcome: the first that does not pass, tried for `within` seconds; a pass is confirmed once."""
        deadline = time.monotonic() + within
        while True:
            outcome = self._look_once(step)
            if outcome.passed:
                if step.kind in (Kind.ANSWER, Kind.PREDICT):
                    return outcome
                time.sleep(CONFIRM_SECONDS)
                outcome = self._look_once(step)
                if outcome.passed:
                    return outcome
            if time.monotonic() >= deadline or outcome.result is not Result.FAIL:
                return outcome
            time.sleep(POLL_SECONDS)

    def _look_once(self, step: Step) -> Outcome:
        missing = self._missing()
        if missing is not None:
            return missing
        outcome = self._answered(step)
        for spec in step.checks:
            if not outcome.passed:
                break
            outcome = check(self.context(step), spec)
        return outcome

    def _missing(self) -> Outcome | None:
        """What a check can't do without, and is gone."""
        try:
            _ = self.world.kubeconfig
        except Blocked as error:
            return Outcome(Result.BLOCKED, error.message, look=error.hint or "")
        if self.lesson.requires.records and not recorder.is_running(self.home):
            return Outcome(Result.BLOCKED, "the live trace of this lesson has ended", look=BEGIN_ANEW)
        return None

    def _answered(self, step: Step) -> Outcome:
        """Whether the answer that a step asks for was given and is right."""
        given = self._open.answers.get(step.id)
        if step.prediction is not None:
            if given is None:
                letters = "|".join(step.prediction.choices)
                return _no_answer("your guess, whatever it is", f"sudo k8snet-lab answer {letters}")
            return passed(f"your guess is kept: {given}")
        if step.question is None:
            return passed("")
        if given is None:
            return _no_answer(step.question.form, "sudo k8snet-lab answer VALUE")
        fact = step.question.fact
        try:
            right = facts.expected(self.context(step), fact.name, fact.parameters)
        except MissingError as error:
            return Outcome(Result.BLOCKED, error.message, look=error.hint or "")
        except K8snetError as error:
            return Outcome(Result.ERROR, error.message, look=error.hint or "")
        if facts.is_right(given, right):
            return passed(f"{given} is right")
        return failed(
            "wrong-answer",
            expected=step.question.form,
            seen=f"your answer {given} is not it",
            look="sudo k8snet-lab hint",
        )

    def context(self, step: Step) -> Context:
        """What a step's checks are given."""
        records = self.home.records if self.lesson.requires.records else None
        since = self._open.entered.get(step.id, time.time())
        return Context(self.world, since, self.home.workspace(self.lesson.id), records)

    def advance(self, step: Step) -> None:
        """Take a step as done, and enter the next."""
        self._pass(step)
        self._enter()

    def reload(self) -> None:
        """Read again what a command in another process may have written."""
        self._session = read_session(self.home)
        self.progress = Progress(self.home)

    # ---- help ----

    def hint(self) -> Hint | None:
        """The next hint for the step that is to be done; None when the lesson is finished."""
        step = self.step
        if step is None:
            return None
        level = self.progress.step(self.lesson.id, step.id).hints
        if level == 0:
            found = Hint(step, 0, outcome=self.look(step, 0.0))
        elif level <= len(step.hints):
            found = Hint(step, level, step.hints[level - 1])
        else:
            found = Hint(step, HINTS + 1)
        with self.progress.change(self.lesson.id, step.id) as entry:
            entry.hints = min(level + 1, HINTS + 1)
        return found

    def solve(self, *, one: bool) -> Report:
        """Do the step that is to be done, or all that are left, as the author would; they count as assisted."""
        self._enter()  # again, where that failed
        report = Report(self.lesson)
        while (step := self.step) is not None:
            self.perform(step)
            outcome = self.look(step, max(step.within, SOLVED_WITHIN))
            report.walked.append((step, outcome))
            if not outcome.passed:
                break
            self._pass(step, assisted=True)
            self._enter()
            if one:
                break
        report.now = self.step
        return report

    def perform(self, step: Step) -> None:
        """Do what a step asks for, by its solution. Raises K8snetError when that fails."""
        if step.prediction is not None:
            self._open.answers.setdefault(step.id, step.prediction.right)
            self._save()
        elif step.is_graded:
            name = "step_" + step.id.replace("-", "_")
            with TemporaryDirectory(prefix="k8snet-lab-") as directory:
                solution = Path(directory, self.lesson.solution.name)
                solution.write_text(self.worded(self.lesson.solution), encoding="utf-8")
                self.script(f"source {shlex.quote(str(solution))}; {name}", f"the solution of {step.id}")

    def script(self, text: str, what: str) -> None:
        """Run a lesson's script as the learner would. Raises K8snetError when it fails."""
        with self.shell() as env:
            done = ran(["bash", "-euo", "pipefail", "-c", text], env=env, seconds=SOLVE_SECONDS, directory=self.files)
        if done.code != 0:
            raise K8snetError(f"{what}: exit code {done.code}: {(done.err or done.out).strip()[-500:]}")
        self.reload()

    @property
    def files(self) -> Path:
        """The directory that scripts and console blocks run in: the lesson's workspace, or where there is none, /."""
        workspace = self.home.workspace(self.lesson.id)
        return workspace if workspace.exists() else Path("/")

    def shell(self) -> AbstractContextManager[dict[str, str]]:
        """The environment of a learner's shell: see `labs.engine.shell`."""
        lesson = self.lesson
        return shell.environment(
            {
                "KUBECONFIG": str(self.world.kubeconfig),
                "K8SNET_CLUSTER": self._open.cluster,
                "K8SNET_LAB_LESSONS": str(self.course.directory),
                "LESSON": str(lesson.directory),
                "WORKSPACE": str(self.home.workspace(lesson.id)),
                **self.home.environment,
            }
        )


def _no_answer(form: str, command: str) -> Outcome:
    return failed("no-answer", expected=form, seen="no answer yet", look=command)


def _must(done: Ran, what: str) -> None:
    if done.code != 0:
        raise K8snetError(f"{what}: {done.err.strip() or done.out.strip()}")
