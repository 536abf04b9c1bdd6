"""Whether a lesson keeps its promises on a cluster: it is walked through as learners would, right and wrong.

    fresh      every graded check fails when its step is entered, and says fail, not error
    blocks     every console block of README.md runs, and prints what it says
    solution   passes, and passes again after a reset
    wrong      every wrong answer fails its step with the reason that it declares
    reset      the cluster is as fresh as after the first start

What belongs here: walking, on a cluster of its own. What does not: what can be seen without one (`lint`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labs.engine import prose
from labs.engine.course import Course
from labs.engine.miniature import Miniature
from labs.engine.outcome import Result
from labs.engine.progress import Home
from labs.engine.prose import Block, Command
from labs.engine.session import SOLVED_WITHIN, Walk
from labs.engine.spec import Kind, Lesson, Step, Wrong
from tracer.errors import K8snetError

BLOCK_SECONDS = 120.0  # a measurement takes its time on a busy machine
MENDED_WITHIN = 2.0  # a solution after a wrong answer need not work, so it is not waited for
READING_SECONDS = 5.0  # before the first command of a section
SEPARATOR = "\x1e"  # ASCII's record separator: no command prints it

Say = Callable[[str], None]


def rehearse_all(lessons: Sequence[Lesson], course: Course, say: Say, jobs: int = 1) -> list[str]:
    """Rehearse lessons, so many at once, each in a process of its own; what is wrong with them, in their order.

    `say` gets whole lines that begin with the lesson's id. It goes to other processes: a function of a module.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes:
        tasks = [processes.submit(_rehearse_timed, lesson.id, course.directory, say) for lesson in lessons]
        return [problem for task in tasks for problem in task.result()]


def _rehearse_timed(lesson_id: str, directory: Path, say: Say) -> list[str]:
    started = time.monotonic()
    course = Course.read(directory)
    found = rehearse(course.find(lesson_id), course, say)
    say(f"{lesson_id}: {len(found)} problems, {time.monotonic() - started:.0f} s")
    return found


def rehearse(lesson: Lesson, course: Course, say: Say = lambda _: None) -> list[str]:
    """Walk through a lesson on a cluster of its own; what is wrong with it, each as a sentence."""
    found: list[str] = []
    with _stage(course) as walk:
        try:
            for problem in _rehearsal(walk, lesson, say):
                found.append(problem)
        except K8snetError as error:
            found.append(f"{lesson.id}: {error.message}")
    return found


def _rehearsal(walk: Walk, lesson: Lesson, say: Say) -> Iterator[str]:
    walk.start(lesson)
    fresh = _state(walk)
    yield from _with_blocks(walk, say)
    walk.reset()
    for text in _changes(fresh, _state(walk)):
        yield f"{lesson.id}: reset: {text}"
    yield from _solved(walk, say)
    yield from wrong_answers(walk, say)


def wrong_answers(walk: Walk, say: Say = lambda _: None) -> Iterator[str]:
    """Try each wrong answer, in as few walks as it takes.

    A walk tries one at each step, and then solves the step if it still can be. What looks wrong after another wrong
    answer is looked at again on a fresh cluster.
    """
    lesson = walk.lesson
    waiting = sorted(lesson.wrong, key=lambda one: lesson.steps.index(lesson.step(one.step)))
    doubtful: list[Wrong] = []
    while waiting:
        walk.reset()
        before = len(waiting)
        yield from _round(walk, waiting, doubtful, say)
        if len(waiting) == before:
            yield f"{lesson.id}: wrong/{waiting.pop(0).path.name}: its step is never reached"
    for wrong in doubtful:
        say(f"{lesson.id}: wrong/{wrong.path.name} again")
        walk.reset()
        yield from _wrong(walk, wrong)


def _round(walk: Walk, waiting: list[Wrong], doubtful: list[Wrong], say: Say) -> Iterator[str]:
    """One walk; takes what it tries out of `waiting`, at least one."""
    is_fresh = True
    while waiting and (step := walk.step) is not None:
        while (wrong := next((one for one in waiting if one.step == step.id), None)) is not None:
            say(f"{walk.lesson.id}: wrong/{wrong.path.name}")
            waiting.remove(wrong)
            problems = list(_try(walk, step, wrong))
            if is_fresh:
                yield from problems
            elif problems:
                doubtful.append(wrong)
            if step.kind is not Kind.ANSWER:  # a wrong word changes nothing
                is_fresh = False
                break
        if not waiting:
            return
        problem = _solve(walk, step, None if is_fresh else MENDED_WITHIN)
        if problem is None:
            continue
        if is_fresh:
            yield f"{walk.lesson.id}: wrong/{waiting[0].path.name}: before it: {problem}"
            waiting.clear()
            return
        try:  # what the wrong answer did, the solution need not mend
            walk.advance(step)
        except K8snetError:
            return


def _solve(walk: Walk, step: Step, within: float | None = None) -> str | None:
    """Solve a step, and go on to the next; what is wrong when it does not pass."""
    try:
        walk.perform(step)
        return _pass(walk, step, within)
    except K8snetError as error:
        return error.message


@contextmanager
def _stage(course: Course) -> Iterator[Walk]:
    """A walk whose files and cluster are its own, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="k8snet-rehearsal-") as directory:
        where = Home(Path(directory, "k8snet"), Path(directory, "files"), (os.geteuid(), os.getegid()))
        walk = Walk(course, where, f"lint-{secrets.token_hex(4)}")
        try:
            yield walk
        finally:
            walk.stop()


def _with_blocks(walk: Walk, say: Say) -> Iterator[str]:
    """Walk through once: each step fails when entered, its blocks print what they should, its solution passes."""
    lesson = walk.lesson
    shown: set[str] = set()
    while (step := walk.step) is not None:
        say(f"{lesson.id}: {step.id}")
        for before in lesson.steps[: lesson.steps.index(step)]:
            if before.id not in shown:  # steps that are only read are passed by the engine
                yield from _blocks(walk, before)
                shown.add(before.id)
        if step.is_graded:
            yield from _fails_fresh(walk, step)
        yield from _blocks(walk, step)
        shown.add(step.id)
        if not step.is_graded or not walk.look(step, 1.0).passed:
            walk.perform(step)
        problem = _pass(walk, step)
        if problem is not None:
            yield problem
            return
    for step in lesson.steps:
        if step.id not in shown:
            yield from _blocks(walk, step)


def _fails_fresh(walk: Walk, step: Step) -> Iterator[str]:
    outcome = walk.look(step, 0.0)
    if outcome.result is not Result.FAIL:
        yield f"{walk.lesson.id}: {step.id}: entered anew, its check says {outcome.result}: {outcome.seen}"


def _pass(walk: Walk, step: Step, within: float | None = None) -> str | None:
    """Have the step looked at, and go on to the next; what is wrong when it does not pass."""
    outcome = walk.look(step, max(step.within, SOLVED_WITHIN) if within is None else within)
    if not outcome.passed:
        return (
            f"{walk.lesson.id}: {step.id}: solved, its check says {outcome.result}: {outcome.expected}; {outcome.seen}"
        )
    walk.advance(step)
    return None


def _solved(walk: Walk, say: Say) -> Iterator[str]:
    """The solution, on a fresh cluster, without the blocks."""
    say(f"{walk.lesson.id}: solution")
    report = walk.solve(one=False)
    for step, outcome in report.walked:
        if not outcome.passed:
            yield f"{walk.lesson.id}: {step.id}: solved again: {outcome.result}: {outcome.expected}; {outcome.seen}"


def _wrong(walk: Walk, wrong: Wrong) -> Iterator[str]:
    """A wrong answer in its step must fail for its reason."""
    name = f"{walk.lesson.id}: wrong/{wrong.path.name}"
    while (step := walk.step) is not None and step.id != wrong.step:
        problem = _solve(walk, step)
        if problem is not None:
            yield f"{name}: before it: {problem}"
            return
    if step is None:
        yield f"{name}: the step {wrong.step} is never reached"
        return
    yield from _try(walk, step, wrong)


def _try(walk: Walk, step: Step, wrong: Wrong) -> Iterator[str]:
    name = f"{walk.lesson.id}: wrong/{wrong.path.name}"
    try:
        walk.script(walk.worded(wrong.path), name)
    except K8snetError as error:
        yield error.message
        return
    outcome = walk.look(step, min(step.within, 2.0))
    deadline = time.monotonic() + SOLVED_WITHIN  # on a busy machine it may take a moment to be in effect, too
    while outcome.result is Result.FAIL and outcome.reason != wrong.reason and time.monotonic() < deadline:
        outcome = walk.look(step, 0.5)
    if (outcome.result, outcome.reason) != (Result.FAIL, wrong.reason):
        yield f"{name}: should fail with {wrong.reason}, but: {outcome.result} {outcome.reason}: {outcome.seen}"


# ---- console blocks ----


def _blocks(walk: Walk, step: Step) -> Iterator[str]:
    lesson = walk.lesson
    blocks = lesson.section(step).blocks
    if blocks:
        _read(walk)
    for block in blocks:
        where = f"{lesson.directory.name}/README.md:{block.line}"
        for problem in _run(walk, block):
            yield f"{where}: {problem}"


def _read(walk: Walk) -> None:
    """Let the cluster bring into effect what it was told, as it does while a learner reads. A broken one never has."""
    deadline = time.monotonic() + READING_SECONDS
    while isinstance(walk.world, Miniature) and walk.world.unready() and time.monotonic() < deadline:
        time.sleep(0.1)


def _run(walk: Walk, block: Block) -> Iterator[str]:
    """Run a block in one shell, and compare what each of its commands prints."""
    try:
        with walk.shell() as env:
            done = subprocess.run(
                ["bash", "-c", _script(block.commands)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env,
                cwd=walk.files,
                timeout=BLOCK_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        yield f"$ {block.commands[0].text}: this block does not end within {BLOCK_SECONDS:.0f} s"
        return
    walk.reload()
    parts = done.stdout.split(SEPARATOR)
    printed, codes = parts[0::2], [int(code) for code in parts[1::2]]
    if len(codes) < len(block.commands):
        yield f"$ {block.commands[len(codes)].text}: the shell ended: {printed[-1].strip()[-300:]}"
    for number, (command, output, code) in enumerate(zip(block.commands, printed, codes, strict=False)):
        may_fail = "fails" in block.words and number == len(block.commands) - 1
        if (code != 0) != may_fail:
            yield f"$ {command.text}: exit code {code}: {output.strip()[-300:]}"
        difference = prose.differs(command.output, output.splitlines(), unordered="unordered" in block.words)
        if difference is not None:
            yield f"$ {command.text}: {difference}"


def _script(commands: tuple[Command, ...]) -> str:
    return "\n".join(f"{command.text}\nprintf '{SEPARATOR}%s{SEPARATOR}' $?" for command in commands)


# ---- what a fresh cluster is ----


def _state(walk: Walk) -> dict[str, Any]:
    """What a lesson could have changed: objects without what is new in each cluster, and what nodes' kernels hold."""
    kinds = ("services", "deployments", "daemonsets", "configmaps", "namespaces", "nodes")
    state: dict[str, Any] = {}
    for kind in kinds:
        for item in walk.world.get(kind, namespace="*"):
            meta = item["metadata"]
            name = f"{kind} {meta.get('namespace', '')}/{meta['name']}"
            state[name] = {"labels": meta.get("labels"), "spec": _steady(item.get("spec"))}
    for node in walk.world.nodes():
        for what in ("-t filter -S", "-t mangle -S", "-t raw -S"):
            state[f"iptables of {node} {what}"] = walk.world.run(node, "iptables", "-w", *what.split()).out
        routes = walk.world.run(node, "ip", "-j", "route").json()
        state[f"routes of {node}"] = sorted(
            json.dumps({k: r.get(k) for k in ("dst", "gateway", "type")}) for r in routes if "/" in str(r.get("dst"))
        )
    return state


def _steady(spec: Any) -> Any:
    """A spec without addresses and ports that are given out anew, and without certificates."""
    drop = {"clusterIP", "clusterIPs", "nodePort", "healthCheckNodePort"}
    if isinstance(spec, dict):
        return {key: _steady(value) for key, value in spec.items() if key not in drop}
    return [_steady(item) for item in spec] if isinstance(spec, list) else spec


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"{name}: {before.get(name)!r}, and then {after.get(name)!r}"
