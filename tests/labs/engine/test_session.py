"""A learner's way through a lesson, on a world laid down: what is next, when a pass counts, what help there is."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from labs.engine import session
from labs.engine.course import Course
from labs.engine.outcome import Result
from labs.engine.progress import Home, Session
from labs.engine.session import NoLesson, Walk
from labs.engine.spec import Kind, Lesson
from labs.engine.stage import Stage
from labs.engine.undo import Undo
from labs.engine.world import World
from tests.labs.engine import lessons
from tests.labs.engine.fake import FakeWorld
from tests.labs.engine.test_checks import WEB
from tracer.errors import K8snetError, UsageError


class PaperStage:
    """A stage of paper. `called`: what stands in lessons -> what it is called there; `cleared`: lessons that ended;
    `undos`: what was to be taken back then.
    """

    def __init__(self) -> None:
        self.fake = FakeWorld()
        self.called: dict[str, str] = {}
        self.cleared: list[str] = []
        self.undos: list[Undo] = []

    @property
    def world(self) -> World:
        return self.fake

    def check(self, lesson: Lesson) -> None:
        pass

    def make(self, lesson: Lesson, say: Any) -> None:
        self.fake = FakeWorld({"service default/web": copy.deepcopy(WEB)})

    def clear(self, lesson: Lesson | None, undos: Sequence[Undo] = ()) -> None:
        self.cleared.append("?" if lesson is None else lesson.id)
        self.undos = list(undos)

    def owner(self) -> tuple[int, str | None]:
        return os.getpid(), None

    def words(self) -> dict[str, str]:
        return self.called


class Paper(Walk):
    """A walk without a cluster."""

    paper: PaperStage

    @property
    def fake(self) -> FakeWorld:
        """What is asked."""
        return self.paper.fake

    def _stage(self, on: str, cluster: str) -> Stage:
        if not hasattr(self, "paper"):
            self.paper = PaperStage()
        return self.paper

    def perform(self, step: Any) -> None:
        if step.id == "open":
            self.fake.objects["service default/web"]["spec"]["type"] = "NodePort"
        elif step.id == "find":
            self.answer("10.96.0.7")
        else:
            super().perform(step)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr(session, "SOLVED_WITHIN", 0.0)


@pytest.fixture
def walk(tmp_path: Path) -> Paper:
    lessons.write(tmp_path / "course" / "01-web")
    where = Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))
    made = Paper(Course.read(tmp_path / "course"), where, "test")
    made.start(made.course.find("web"))
    return made


def now(walk: Walk) -> str | None:
    return None if walk.step is None else walk.step.id


def test_from_the_first_step_to_the_last(walk: Paper) -> None:
    assert now(walk) == "guess"
    assert walk.check().result is Result.FAIL
    walk.answer(" A ")
    report = walk.check()  # the step that is only read is passed with it, and the answer is not there yet
    assert [(step.id, outcome.result) for step, outcome in report.walked] == [("guess", Result.PASS)]
    assert (now(walk), report.result, report.entered) == ("find", Result.FAIL, True)
    walk.answer("10.96.0.7")
    assert [step.id for step, _ in walk.check().walked] == ["find"]
    walk.perform(walk.lesson.step("open"))
    report = walk.check()
    assert (report.result, report.now, now(walk)) == (Result.PASS, None, None)
    assert walk.done() == {"web"}
    assert walk.progress.step("web", "guess").answer == "a"


def test_a_check_goes_on_as_far_as_the_learner_has_got(walk: Paper) -> None:
    walk.answer("b")
    walk.perform(walk.lesson.step("open"))
    walk.check()
    walk.answer("10.96.0.7")
    report = walk.check()
    assert ([step.id for step, _ in report.walked], report.result) == (["find", "open"], Result.PASS)


def test_only_the_first_failure_is_told(walk: Paper) -> None:
    walk.answer("b")
    walk.check()
    walk.answer("10.96.0.8")
    report = walk.check()
    ((step, outcome),) = report.walked
    assert (step.id, outcome.reason, report.entered) == ("find", "wrong-answer", False)


def test_what_was_passed_is_not_asked_again(walk: Paper) -> None:
    walk.solve(one=False)
    walk.fake.objects.clear()
    assert walk.check().result is Result.PASS


def test_a_pass_has_to_last(walk: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    walk.answer("b")
    walk.check()
    walk.answer("10.96.0.7")
    walk.check()
    spec = walk.fake.objects["service default/web"]["spec"]
    spec["type"] = "NodePort"
    monkeypatch.setattr(session.time, "sleep", lambda _: spec.update(type="ClusterIP"))
    assert walk.check().result is Result.FAIL


def test_a_check_is_tried_again_for_a_while(walk: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    walk.answer("b")
    walk.check()
    walk.answer("10.96.0.7")
    walk.check()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            walk.perform(walk.lesson.step("open"))

    monkeypatch.setattr(session.time, "sleep", sleep)
    assert walk.look(walk.lesson.step("open"), 5.0).passed
    assert slept == [session.POLL_SECONDS] * 3 + [0.0]


def test_answers_that_make_no_sense(walk: Paper) -> None:
    with pytest.raises(UsageError, match="choose one of a, b"):
        walk.answer("c")
    walk.solve(one=False)
    with pytest.raises(UsageError, match="asks for no answer"):
        walk.answer("a")


def test_hints_tell_more_each_time(walk: Paper) -> None:
    walk.solve(one=True)
    found = [walk.hint() for _ in range(6)]
    assert [hint.level for hint in found if hint] == [0, 1, 2, 3, 4, 4]
    assert found[0] is not None and found[0].outcome is not None and found[0].outcome.reason == "no-answer"
    assert [hint.text for hint in found[1:4] if hint] == [
        "It is in the API.",
        "kubectl shows it.",
        "In the column CLUSTER-IP.",
    ]
    walk.solve(one=False)
    assert walk.hint() is None


def test_what_was_solved_counts_as_assisted(walk: Paper) -> None:
    walk.answer("a")
    walk.check()
    report = walk.solve(one=True)
    assert [step.id for step, _ in report.walked] == ["find"]
    assert walk.solve(one=False).result is Result.PASS
    assisted = {step.id: walk.progress.step("web", step.id).assisted for step in walk.lesson.steps}
    assert assisted == {"guess": False, "look": False, "find": True, "open": True}


def test_reset_begins_anew_and_keeps_progress(walk: Paper) -> None:
    walk.solve(one=False)
    walk.reset()
    assert now(walk) == "guess"
    assert walk.fake.objects["service default/web"] == WEB
    assert walk.done() == {"web"}


def test_reset_of_a_step_does_the_steps_before_it(walk: Paper) -> None:
    walk.answer("a")
    walk.check()
    walk.answer("10.96.0.7")
    walk.check()
    walk.fake.objects.clear()
    walk.reset_step()
    assert now(walk) == "open"
    assert walk.fake.objects["service default/web"] == WEB
    assert walk.progress.step("web", "guess").answer == "a"


def test_reset_of_all_forgets(walk: Paper) -> None:
    walk.solve(one=False)
    walk.reset_all()
    assert (walk.done(), walk.opened) == (set(), None)
    with pytest.raises(NoLesson):
        walk.check()


def test_another_process_goes_on(walk: Paper) -> None:
    walk.answer("b")
    walk.check()
    again = Paper(walk.course, walk.home, "test")
    again.paper = walk.paper
    assert (again.opened, now(again)) == ("web", "find")


FAULTY = """
[[steps]]
id = "mend"
title = "Mend it"
kind = "fix"
within = 0
apply = ["broken.yaml"]
files = ["web.yaml"]
hints = ["a", "b", "c"]
fault = { fault = "rule", node = "node1", rule = "FORWARD -p tcp -j DROP" }
[[steps.checks]]
check = "service"
name = "web"
type = "LoadBalancer"
"""


def faulty(tmp_path: Path) -> Paper:
    """A walk that has come to the step before the one that breaks something."""
    readme = lessons.README.replace("## Debrief", "## Mend it\n\nMend it.\n\n## Debrief")
    directory = lessons.write(tmp_path / "course" / "01-web", lab=lessons.LAB + FAULTY, readme=readme)
    for name in ("manifests/broken.yaml", "files/web.yaml"):
        (directory / name).parent.mkdir()
        (directory / name).write_text("kind: Service\n")
    where = Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))
    walk = Paper(Course.read(tmp_path / "course"), where, "test")
    lesson = walk.course.find("web")
    assert lesson.manifests == []
    walk.start(lesson)
    for _ in range(2):
        walk.solve(one=True)
    return walk


def test_a_step_is_prepared_when_it_is_entered(tmp_path: Path) -> None:
    walk = faulty(tmp_path)
    directory = walk.lesson.directory
    walk.fake.commands["node1: iptables"] = session.Ran(0, "", "")
    assert not (tmp_path / "files").exists()
    assert not any("apply" in text for text in walk.fake.asked)
    walk.solve(one=True)
    assert now(walk) == "mend"
    assert (tmp_path / "files" / "web" / "web.yaml").read_text() == "kind: Service\n"
    assert (directory / "manifests" / "broken.yaml").read_text() in walk.fake.applied
    assert any("iptables" in text and "FORWARD" in text for text in walk.fake.asked)


def test_what_a_check_has_just_broken_it_does_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can have mended it yet, and looking at what hangs takes its time."""
    walk = faulty(tmp_path)
    walk.fake.commands["node1: iptables"] = session.Ran(0, "", "")
    walk.perform(walk.lesson.step("open"))
    looked: list[str] = []
    look = walk.look
    monkeypatch.setattr(walk, "look", lambda step, within: (looked.append(step.id), look(step, within))[1])
    report = walk.check()
    assert [step.id for step, _ in report.walked] == looked == ["open"]
    assert (now(walk), report.result, report.entered) == ("mend", Result.FAIL, True)
    report = walk.check()
    assert [(step.id, outcome.result) for step, outcome in report.walked] == [("mend", Result.FAIL)]


def test_what_takes_a_fault_back_is_kept_before_it_breaks_something(tmp_path: Path) -> None:
    """Also when it breaks only half of it: the step is entered again by the next check."""
    walk = faulty(tmp_path)
    walk.fake.commands["node1: iptables -w -t filter -C"] = session.Ran(1, "", "")
    walk.fake.commands["node1: iptables"] = session.Ran(4, "", "no table filter")
    with pytest.raises(K8snetError, match="no table filter"):
        walk.solve(one=True)
    kept = session.read_session(walk.home)
    assert kept is not None
    assert [one["command"][4] for one in kept.undos] == ["-D"]
    walk.fake.commands["node1: iptables"] = session.Ran(0, "", "")
    report = walk.check()
    assert (now(walk), report.result) == ("mend", Result.FAIL)
    assert (tmp_path / "files" / "web" / "web.yaml").exists()
    again = Paper(walk.course, walk.home, "test")  # as another command finds it
    again.paper = walk.paper
    assert again.stop()
    delete = ["iptables", "-w", "-t", "filter", "-D", "FORWARD", "-p", "tcp", "-j", "DROP"]
    assert walk.paper.undos == [{"target": "node1", "command": delete}] * 2


def test_a_solution_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solution = "step_find() {\n echo it broke >&2; false\n}\nstep_open() {\n true\n}\n"
    lessons.write(tmp_path / "course" / "01-web", solution=solution)
    where = Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))
    walk = Paper(Course.read(tmp_path / "course"), where, "test")
    walk.start(walk.course.find("web"))
    with pytest.raises(K8snetError, match="the solution of find: exit code 1: it broke"):
        Walk.perform(walk, walk.lesson.step("find"))


def test_a_lesson_that_this_world_is_not_for(walk: Paper) -> None:
    with pytest.raises(UsageError, match="can't run on moon"):
        walk.start(walk.lesson, on="moon")


def test_the_session_is_written_whole(walk: Paper) -> None:
    kept = session.read_session(walk.home)
    assert isinstance(kept, Session)
    assert (kept.lesson, kept.world, kept.cluster, list(kept.entered)) == ("web", "miniature", "test", ["guess"])


ELSEWHERE = 'on = ["miniature"]\nwhy = "It has no such device."\n'


def on_kind(tmp_path: Path, lab: str, called: dict[str, str]) -> Paper:
    lessons.write(tmp_path / "course" / "01-web", lab=lab)
    where = Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))
    made = Paper(Course.read(tmp_path / "course"), where, "test")
    made._stage("kind", "test")
    made.paper.called = called
    made.start(made.course.find("web"), on="kind")
    return made


def test_a_step_that_can_not_be_done_there_is_only_read(tmp_path: Path) -> None:
    lab = lessons.LAB.replace('kind = "answer"\n', f'kind = "answer"\n{ELSEWHERE}')
    lab = lab.replace('kind = "predict"\n', f'kind = "predict"\n{ELSEWHERE}')
    walk = on_kind(tmp_path, lab, {})
    assert now(walk) == "open"
    assert [step.kind for step in walk.lesson.steps] == [Kind.READ, Kind.READ, Kind.READ, Kind.CHANGE]
    told = walk.lesson.section(walk.lesson.step("find")).text
    note = "*To be done on the cluster in miniature only, and here to be read: It has no such device.*"
    assert told.splitlines()[0] == note
    assert "Where is it?" in told
    report = walk.solve(one=False)
    assert report.now is None
    assert walk.done() == {"web"}
    walk.start(walk.course.find("web"))
    assert now(walk) == "guess"


def test_the_lesson_is_told_in_the_words_of_its_cluster(tmp_path: Path) -> None:
    walk = on_kind(
        tmp_path, lessons.LAB.replace("kubectl edit.", "kubectl edit on node1."), {"node1": "shop", "web": "shop"}
    )
    assert walk.lesson.step("open").hints[2] == "kubectl edit on shop."
    assert walk.lesson.step("open").checks[0].parameters["name"] == "shop"
    assert (walk.lesson.id, walk.lesson.title) == ("web", "A shop server")
    again = Walk(walk.course, walk.home, "test")  # as another command finds it
    assert again.lesson == walk.lesson
    walk.reset()
    assert walk.lesson == again.lesson
    assert walk.paper.cleared == ["web"]
