"""A lesson as its author wrote it: the directory's lab.toml and README.md, read into values.

    labs/lessons/NN-name/
      lab.toml        what is asked, checked and hinted
      README.md       the prose: its "## " headings are the steps, in order, and at the end "## Debrief"
      manifests/      applied when the lesson starts, or when a step is entered
      files/          copied for the learner, to be edited
      solution.sh     called with a step's id, does what the step asks for
      wrong/*.sh      plausible wrong answers: "# step: ID" and "# fails: REASON" in the first lines
      cleanup.sh      run on each node of a cluster that stays, before and after: takes away what learners make there

What belongs here: the form, and errors with file and key. What does not: running any of it, and how lessons stand
to each other (`labs.engine.course`).
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from labs.cluster.options import CNIS, IP_FAMILIES, IPTABLES_VARIANTS, MAX_NODES, PROXY_MODES
from labs.engine import prose
from labs.engine.prose import Section
from tracer.errors import FormatError

HINTS = 3
DEBRIEF = "Debrief"
WORLDS = ("miniature", "kind")
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_REQUIRED = ("id", "title", "summary", "order", "minutes", "concepts", "steps")
_OPTIONAL = ("needs", "assumes", "requires")
_REQUIRES = {"nodes", "proxy", "cni", "ip_family", "iptables", "on", "records", "outside"}
_STEP = {"id", "kind", "title", "checks", "hints", "within", "answer", "predict", "fault", "apply", "files"}
_STEP |= {"on", "why"}


class LessonError(FormatError):
    """A lesson's files are not what they should be; the message names the file and the key."""


class Kind(StrEnum):
    """What a step asks for."""

    READ = "read"
    PREDICT = "predict"  # commit to a guess; the truth is told later
    OBSERVE = "observe"  # a record of the live trace, or a state of the kernel
    ANSWER = "answer"  # a value that the learner found
    CHANGE = "change"
    FIX = "fix"  # what the engine broke
    WRITE = "write"  # edit a file that was copied


GRADED = frozenset({Kind.OBSERVE, Kind.ANSWER, Kind.CHANGE, Kind.FIX, Kind.WRITE})


@dataclass(frozen=True, slots=True)
class Named:
    """Something of a registry with the lesson's parameters: a check, a fact, a fault."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """`choices`: letter -> text. `right`: the letter that turns out to be so, told with `because` after step `told`."""

    choices: Mapping[str, str]
    right: str
    because: str
    told: str


@dataclass(frozen=True, slots=True)
class Question:
    """`fact`: computes the expected value from the running cluster. `form`: what an answer looks like, told to the
    learner: "an IP address".
    """

    fact: Named
    form: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `within`: seconds for which its checks are tried again. `apply`: manifests, when it is entered;
    `faults`: what is broken then; `files`: what is copied for the learner then. `on`: where it can be done; elsewhere
    it is only read, and `why` says why.
    """

    id: str
    title: str
    kind: Kind
    checks: tuple[Named, ...]
    hints: tuple[str, ...]
    within: float
    question: Question | None
    prediction: Prediction | None
    faults: tuple[Named, ...]
    apply: tuple[str, ...]
    files: tuple[str, ...]
    on: tuple[str, ...] = WORLDS
    why: str = ""

    @property
    def is_graded(self) -> bool:
        """Whether it takes something to do that a check sees."""
        return self.kind in GRADED


@dataclass(frozen=True, slots=True)
class Requires:
    """The cluster that a lesson needs. `on`: where it can run. `records`: whether the live trace is kept meanwhile.
    `iptables`: the variant of nodes in miniature; kind chooses for its own. `outside`: whether it calls from
    client-host, a host outside of the cluster; in miniature there is always one.
    """

    nodes: int = 2
    proxy: str = "iptables"
    cni: str = "routed"
    ip_family: str = "ipv4"
    iptables: str = "default"
    on: tuple[str, ...] = WORLDS
    records: bool = False
    outside: bool = False

    @property
    def only_in_miniature(self) -> str | None:
        """The option here that no kind cluster has, as `k8snet-lab up` takes it; None: all can be had there."""
        return None if self.cni == "routed" else f"--cni {self.cni}"


@dataclass(frozen=True, slots=True)
class Wrong:
    """A plausible wrong answer: after it, the checks of `step` must fail for `reason`."""

    path: Path
    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """One lesson. `concepts` are taught here, `assumes` must be known, `needs` are ids of lessons before it.

    `sections`: the prose of each step, in the order of `steps`.
    """

    directory: Path
    id: str
    title: str
    summary: str
    order: int
    minutes: int
    needs: tuple[str, ...]
    concepts: tuple[str, ...]
    assumes: tuple[str, ...]
    requires: Requires
    steps: tuple[Step, ...]
    introduction: str
    sections: tuple[Section, ...]
    debrief: str

    def step(self, step_id: str) -> Step:
        """Raises KeyError."""
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)

    def section(self, step: Step) -> Section:
        """The prose of a step."""
        return self.sections[self.steps.index(step)]

    @property
    def worlds(self) -> tuple[str, ...]:
        """Where it can run: what its author says, but for kind where it needs what that has not."""
        alone = self.requires.only_in_miniature is not None
        return tuple(world for world in self.requires.on if not (alone and world == "kind"))

    @property
    def manifests(self) -> list[Path]:
        """What is applied at the start: all manifests but those that belong to a step."""
        of_steps = {name for step in self.steps for name in step.apply}
        return [path for path in sorted((self.directory / "manifests").glob("*.yaml")) if path.name not in of_steps]

    @property
    def solution(self) -> Path:
        """The script that solves a step, given as its argument."""
        return self.directory / "solution.sh"

    @property
    def cleanup(self) -> str:
        """What is run on each node of a cluster that outlives the lesson; "" for nothing. It may find nothing to do."""
        path = self.directory / "cleanup.sh"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def solution_of(self, step: Step) -> str:
        """What the solution does in a step: the lines of its function; "" when it has none."""
        try:
            text = self.solution.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        name = step.id.replace("-", "_")
        found = re.search(rf"^step_{name}\(\) \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
        return textwrap.dedent(found[1]).strip() if found else ""

    @property
    def wrong(self) -> list[Wrong]:
        """The wrong answers. Raises LessonError for one that does not name its step and reason."""
        return [_wrong(path) for path in sorted((self.directory / "wrong").glob("*.sh"))]


def read(directory: Path) -> Lesson:
    """Read a lesson's directory. Raises LessonError."""
    path = directory / "lab.toml"
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise LessonError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise LessonError(f"{path}: {error}") from error
    form = _Form(path)
    form.keys(document, _REQUIRED, _OPTIONAL, "lesson")
    steps = tuple(form.step(entry) for entry in form.list_of(document, "steps", dict))
    if not steps:
        raise form.wrong("steps", "a lesson has at least one")
    page = prose.read(directory / "README.md")
    introduction, sections, debrief = _match(page, steps, directory / "README.md")
    return Lesson(
        directory=directory,
        id=form.id_of(document),
        title=form.text(document, "title"),
        summary=form.text(document, "summary"),
        order=form.number(document, "order"),
        minutes=form.number(document, "minutes"),
        needs=form.texts(document, "needs"),
        concepts=form.texts(document, "concepts"),
        assumes=form.texts(document, "assumes"),
        requires=form.requires(document.get("requires", {})),
        steps=steps,
        introduction=introduction,
        sections=sections,
        debrief=debrief,
    )


class _Form:
    """Takes values out of lab.toml, and names the file and the key when one is not what it should be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrong(self, key: str, why: str) -> LessonError:
        return LessonError(f"{self._path}: {key}: {why}")

    def keys(self, table: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...], what: str) -> None:
        for key in required:
            if key not in table:
                raise self.wrong(key, f"a {what} must have it")
        for key in table:
            if key not in required and key not in optional:
                raise self.wrong(key, f"a {what} has no such key; known: {', '.join(sorted({*required, *optional}))}")

    def id_of(self, table: Mapping[str, Any]) -> str:
        text = self.text(table, "id")
        if not _ID.fullmatch(text):
            raise self.wrong("id", f"{text!r}: lower-case words with hyphens between them")
        return text

    def text(self, table: Mapping[str, Any], key: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "must be text")
        return value.strip()

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, "must be a list of texts")
        return tuple(value)

    def number(self, table: Mapping[str, Any], key: str) -> int:
        value = table.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "must be a whole number above 0")
        return value

    def list_of(self, table: Mapping[str, Any], key: str, of: type) -> list[Any]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
            raise self.wrong(key, "must be a list of tables")
        return value

    def requires(self, table: Mapping[str, Any]) -> Requires:
        for key in table:
            if key not in _REQUIRES:
                raise self.wrong(f"requires.{key}", f"no such key; known: {', '.join(sorted(_REQUIRES))}")
        on = self.texts(table, "on") or WORLDS
        requires = Requires(**{**table, "on": on})
        for key, value, known in (
            ("proxy", requires.proxy, PROXY_MODES),
            ("cni", requires.cni, CNIS),
            ("ip_family", requires.ip_family, IP_FAMILIES),
            ("iptables", requires.iptables, IPTABLES_VARIANTS),
            ("nodes", requires.nodes, range(1, MAX_NODES + 1)),
            ("records", requires.records, (True, False)),
            ("outside", requires.outside, (True, False)),
            *(("on", item, WORLDS) for item in on),
        ):
            if value not in known:
                raise self.wrong(f"requires.{key}", f"{value!r} is none of {', '.join(map(str, known))}")
        return requires

    def step(self, table: Mapping[str, Any]) -> Step:
        step_id = self.id_of(table)
        for key in table:
            if key not in _STEP:
                raise self.wrong(f"steps.{step_id}.{key}", f"no such key; known: {', '.join(sorted(_STEP))}")
        try:
            kind = Kind(table.get("kind", ""))
        except ValueError as error:
            raise self.wrong(f"steps.{step_id}.kind", f"one of {', '.join(Kind)}") from error
        within = table.get("within", 2.0)
        if not isinstance(within, int | float) or not 0 <= within <= 60:
            raise self.wrong(f"steps.{step_id}.within", "seconds, 0 to 60")
        faults = table.get("fault", [])
        step = Step(
            id=step_id,
            title=self.text(table, "title"),
            kind=kind,
            checks=tuple(self.named(entry, "check") for entry in self.list_of(table, "checks", dict)),
            hints=self.texts(table, "hints"),
            within=float(within),
            question=self.question(table.get("answer")),
            prediction=self.prediction(table.get("predict")),
            faults=tuple(self.named(entry, "fault") for entry in ([faults] if isinstance(faults, dict) else faults)),
            apply=self.texts(table, "apply"),
            files=self.texts(table, "files"),
            on=self.texts(table, "on") or WORLDS,
            why=self.text(table, "why") if "why" in table else "",
        )
        self.fits(step)
        return step

    def fits(self, step: Step) -> None:
        """What a step of this kind must have, and may not have."""
        key = f"steps.{step.id}"
        if (step.kind is Kind.ANSWER) != (step.question is not None):
            raise self.wrong(f"{key}.answer", "a step of kind answer has it, and no other")
        if (step.kind is Kind.PREDICT) != (step.prediction is not None):
            raise self.wrong(f"{key}.predict", "a step of kind predict has it, and no other")
        if step.kind in GRADED - {Kind.ANSWER} and not step.checks:
            raise self.wrong(f"{key}.checks", f"a step of kind {step.kind} has at least one")
        if step.kind in (Kind.READ, Kind.PREDICT) and step.checks:
            raise self.wrong(f"{key}.checks", f"a step of kind {step.kind} has none")
        if step.is_graded and len(step.hints) != HINTS:
            raise self.wrong(f"{key}.hints", f"{HINTS}, each telling more than the one before")
        if step.kind is Kind.FIX and not (step.faults or step.apply):
            raise self.wrong(f"{key}.fault", "a step of kind fix breaks something, by `fault` or `apply`")
        if step.kind is Kind.WRITE and not step.files:
            raise self.wrong(f"{key}.files", "a step of kind write has files to edit")
        if not set(step.on) <= set(WORLDS):
            raise self.wrong(f"{key}.on", f"some of {', '.join(WORLDS)}")
        if (set(step.on) != set(WORLDS)) != bool(step.why):
            raise self.wrong(f"{key}.why", "a step that can't be done everywhere says why, and no other")

    def named(self, table: Mapping[str, Any], key: str) -> Named:
        return Named(self.text(table, key), {name: value for name, value in table.items() if name != key})

    def question(self, table: Any) -> Question | None:
        if table is None:
            return None
        parameters = {name: value for name, value in table.items() if name not in ("fact", "form")}
        return Question(Named(self.text(table, "fact"), parameters), self.text(table, "form"))

    def prediction(self, table: Any) -> Prediction | None:
        if table is None:
            return None
        self.keys(table, ("choices", "right", "because", "told"), (), "prediction")
        choices = table["choices"]
        if not isinstance(choices, dict) or len(choices) < 2:
            raise self.wrong("predict.choices", "at least two: a = …, b = …")
        if table["right"] not in choices:
            raise self.wrong("predict.right", "must be one of the choices")
        return Prediction(choices, table["right"], self.text(table, "because"), self.text(table, "told"))


def _match(page: prose.Page, steps: tuple[Step, ...], path: Path) -> tuple[str, tuple[Section, ...], str]:
    """Introduction, the sections of the steps, and the debrief."""
    headings = [section.title for section in page.sections]
    wanted = [step.title for step in steps] + [DEBRIEF]
    if headings != wanted:
        raise LessonError(f"{path}: the headings of its sections are {headings}; by lab.toml they should be {wanted}")
    return page.introduction, tuple(page.sections[:-1]), page.sections[-1].text


def _wrong(path: Path) -> Wrong:
    found = dict(re.findall(r"^# (step|fails): *(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for key in ("step", "fails"):
        if key not in found:
            raise LessonError(f"{path}: has no line `# {key}: …`")
    return Wrong(path, found["step"], found["fails"])
