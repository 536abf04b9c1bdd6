"""The programs of the lesson on BPF, on whatever kernel this is: wrong as they are given, right when solved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from labs.engine.checks import check
from labs.engine.course import LESSONS
from labs.engine.outcome import Result
from labs.engine.spec import Step, read
from tests.labs.engine.fake import FakeWorld, context

pytestmark = pytest.mark.bpf

LESSON = read(LESSONS / "12-own-bpf")
STEPS = [step for step in LESSON.steps if step.files]


@pytest.mark.parametrize("step", STEPS, ids=[step.id for step in STEPS])
def test_a_program_is_refused_or_wrong_as_it_is_given_and_right_when_solved(step: Step, tmp_path: Path) -> None:
    for name in step.files:
        shutil.copy(LESSON.directory / "files" / name, tmp_path)
    (looked,) = step.checks
    before = check(context(FakeWorld(), tmp_path), looked)
    assert before.result is Result.FAIL, before
    subprocess.run(["bash", "-euc", f"source {LESSON.solution}; step_{step.id}"], cwd=tmp_path, check=True)
    solved = check(context(FakeWorld(), tmp_path), looked)
    assert solved.passed, solved
