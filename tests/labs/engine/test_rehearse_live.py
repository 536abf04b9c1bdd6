"""The rehearsal finds what is wrong with a lesson: small lessons with one thing broken, walked through on clusters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labs.engine import rehearse as rehearsal
from labs.engine import session
from labs.engine.course import Course
from labs.engine.progress import Session
from labs.engine.rehearse import rehearse, rehearse_all
from labs.engine.session import Walk
from tests.labs.engine import lessons
from tracer.program import say

pytestmark = [pytest.mark.root, pytest.mark.slow]

LAB = lessons.LAB.replace("[[steps]]", "[requires]\nnodes = 1\n\n[[steps]]", 1)
Write = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Write:
    """Writes a lesson with these files and rehearses it."""

    def write(lab: str = LAB, **files: str) -> list[str]:
        lessons.write(tmp_path / "course" / "01-web", lab=lab, manifest=lessons.MANIFEST, **files)
        course = Course.read(tmp_path / "course")
        return rehearse(course.find("web"), course)

    return write


def test_a_check_that_passes_at_once_a_block_that_prints_something_else_and_a_wrong_answer_that_passes(
    problems: Write,
) -> None:
    found = problems(
        lab=LAB.replace('type = "NodePort"', 'type = "ClusterIP"'),
        readme=lessons.README.replace("one …", "three …"),
        solution=lessons.SOLUTION.replace("kubectl patch", ": kubectl patch"),
    )
    assert found == [
        "01-web/README.md:13: $ echo one two: expected the line 'three …', and saw ['one two']",
        "web: open: entered anew, its check says pass: Service default/web is there, of type ClusterIP",
        "web: wrong/label.sh: should fail with type, but: pass : Service default/web is there, of type ClusterIP",
    ]


def test_a_solution_that_does_not_solve(problems: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rehearsal, session):
        monkeypatch.setattr(module, "SOLVED_WITHIN", 0.5)
    found = problems(solution=lessons.SOLUTION.replace('"type":"NodePort"', '"type":"LoadBalancer"'))
    seen = "Service default/web with type NodePort; its type is LoadBalancer"
    assert found[0] == f"web: open: solved, its check says fail: {seen}"
    assert found[1] == f"web: open: solved again: fail: {seen}"


def test_blocks_that_fail_or_end_their_shell_and_a_wrong_answer_with_another_reason(problems: Write) -> None:
    block = "```console\n$ ls /no/such\n$ exit 0\n$ echo never\n```"
    found = problems(
        readme=lessons.README.replace("Open it.", block),
        wrong="#!/bin/bash\n# step: open\n# fails: type\nkubectl delete service web\n",
    )
    assert len(found) == 4
    assert found[0].startswith("01-web/README.md:24: $ exit 0: the shell ended: ")
    assert found[1].startswith("01-web/README.md:24: $ ls /no/such: exit code 2: ")
    assert found[2].startswith("01-web/README.md:24: $ ls /no/such: expected nothing, and saw ")
    assert found[3].startswith("web: wrong/label.sh: should fail with type, but: fail missing: ")


def test_a_reset_that_restores_nothing(problems: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(walk: Walk) -> None:
        walk._session = Session("web", "miniature", walk._open.cluster)
        walk._enter()

    monkeypatch.setattr(Walk, "reset", reset)
    (found,) = (text for text in problems() if text.startswith("web: reset: services "))
    assert found.startswith("web: reset: services default/web: ")
    assert "NodePort" in found


SLOW = """
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  containers:
    - name: slow
      image: client
      readinessProbe: {exec: {command: ["true"]}, initialDelaySeconds: 2}
"""


def test_a_learner_reads_before_the_first_command(tmp_path: Path) -> None:
    """What a step begins with has come into effect by then: here a pod that is not ready at once."""
    block = "```console\n$ kubectl get pod slow --no-headers\nslow   1/1   Running   0   …\n```"
    directory = lessons.write(
        tmp_path / "01-web",
        lab=LAB.replace('id = "open"', 'id = "open"\napply = ["slow.yaml"]'),
        readme=lessons.README.replace("Open it.", block),
        manifest=lessons.MANIFEST,
    )
    (directory / "manifests" / "slow.yaml").write_text(SLOW)
    course = Course.read(tmp_path)
    assert rehearse(course.find("web"), course) == []


def test_several_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each on a cluster of its own; what is wrong comes in the lessons' order, and one of them is sound."""
    orders = {"shop": 2, "door": 3}
    lessons.write(tmp_path / "01-web", lab=LAB, manifest=lessons.MANIFEST)
    for name, order in orders.items():
        lab = LAB.replace('id = "web"', f'id = "{name}"', 1).replace("order = 1", f"order = {order}")
        fails = lessons.SOLUTION.replace("step_open() {", f"step_open() {{\n    echo {name} >&2; false")
        lessons.write(tmp_path / name, lab=lab, solution=fails, manifest=lessons.MANIFEST)
    course = Course.read(tmp_path)
    assert rehearse_all(course.lessons, course, say, jobs=3) == [
        "shop: the solution of open: exit code 1: shop",
        "door: the solution of open: exit code 1: door",
    ]
    lines = capfd.readouterr().err.splitlines()
    assert {line.partition(":")[0] for line in lines} == {"web", "shop", "door"}
    assert sum(": 1 problems, " in line for line in lines) == 2
