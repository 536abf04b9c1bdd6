"""What a learner has done, kept in a file of his own: progress by lesson and step, which never goes back.

    $XDG_STATE_HOME/k8snet/ (default ~/.local/state/k8snet) of the user who called sudo
      progress.json     steps passed, hints taken, answers given
      session.json      the lesson that is open now
      records.jsonl     its live trace
      kind-NAME.kubeconfig   the way to a kind cluster
    ~/k8snet-lab/LESSON/, or below $K8SNET_LAB_FILES: the files that a lesson asks to edit

What belongs here: the files, their owner, and writing them so that a crash leaves the old or the new one. What does
not: what the entries mean to a session (`labs.engine.session`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracer.errors import FormatError, OutputError

FORMAT = 1


@dataclass(slots=True)
class StepProgress:
    """One step. `passed`: when, seconds since 1970; None: not yet. `assisted`: by `solve`. `hints`: taken so far."""

    passed: float | None = None
    assisted: bool = False
    hints: int = 0
    answer: str | None = None


@dataclass(slots=True)
class Session:
    """The lesson that is open. `entered`: step id -> when, seconds since 1970. `done`: steps done in this cluster.
    `words`: what stands in lessons -> what it is called on this cluster. `undos`: what takes the faults of its steps
    back (`labs.engine.undo`), oldest first.
    """

    lesson: str
    world: str
    cluster: str
    entered: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    undos: list[dict[str, Any]] = field(default_factory=list)


class Home:
    """The directory of the user behind sudo. What is written belongs to that user."""

    def __init__(self, directory: Path, workspaces: Path, owner: tuple[int, int]) -> None:
        self.directory = directory
        self._workspaces = workspaces
        self._owner = owner

    def workspace(self, lesson: str) -> Path:
        """Where a lesson's files are that the learner edits."""
        return self._workspaces / lesson

    @property
    def records(self) -> Path:
        """Where the live trace of the open lesson is kept."""
        return self.directory / "records.jsonl"

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find the same directories."""
        return {"XDG_STATE_HOME": str(self.directory.parent), "K8SNET_LAB_FILES": str(self._workspaces)}

    def make(self, directory: Path) -> None:
        """Have a directory, and its parents, owned by the user."""
        missing = [one for one in (directory, *directory.parents) if not one.exists()]
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            self.own(one)

    def own(self, path: Path) -> None:
        """Give a file to the user."""
        if os.geteuid() == 0:
            os.chown(path, *self._owner, follow_symlinks=False)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file; None when there is none. Raises FormatError."""
        path = self.directory / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: {error}", hint=f"mv {path} {path}.broken") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FormatError(f"{path}: written by another version of k8snet", hint=f"mv {path} {path}.old")
        return document

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON file in one step. Raises OutputError."""
        self.write_text(name, json.dumps({"format": FORMAT, **document}, indent=2))

    def write_text(self, name: str, text: str) -> None:
        """Write a file in one step, readable by the user only. Raises OutputError."""
        path = self.directory / name
        try:
            self.make(self.directory)
            descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=f".{name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                self.own(Path(temporary))
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone."""
        (self.directory / name).unlink(missing_ok=True)


def home() -> Home:
    """The directory of the user who called sudo, or who we are. XDG_STATE_HOME counts where sudo leaves it."""
    own, owner = Path("~").expanduser(), (os.geteuid(), os.getegid())
    caller = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    if caller.isdigit():
        with contextlib.suppress(KeyError):
            user = pwd.getpwuid(int(caller))
            own, owner = Path(user.pw_dir), (user.pw_uid, user.pw_gid)
    state = Path(os.environ.get("XDG_STATE_HOME") or own / ".local/state")
    return Home(state / "k8snet", Path(os.environ.get("K8SNET_LAB_FILES") or own / "k8snet-lab"), owner)


class Progress:
    """Lesson id -> step id -> what was done. Every change is written at once."""

    def __init__(self, where: Home) -> None:
        self._home = where
        document = where.read("progress.json") or {}
        self._lessons: dict[str, dict[str, StepProgress]] = {
            lesson: {step: StepProgress(**entry) for step, entry in steps.items()}
            for lesson, steps in document.get("lessons", {}).items()
        }

    def step(self, lesson: str, step: str) -> StepProgress:
        """What was done of a step; nothing yet, at first."""
        return self._lessons.get(lesson, {}).get(step, StepProgress())

    def passed(self, lesson: str) -> set[str]:
        """The steps of a lesson that were passed."""
        return {step for step, entry in self._lessons.get(lesson, {}).items() if entry.passed is not None}

    @contextlib.contextmanager
    def change(self, lesson: str, step: str) -> Iterator[StepProgress]:
        """Change a step's entry, and write it. What was passed once stays passed."""
        entry = self._lessons.setdefault(lesson, {}).setdefault(step, StepProgress())
        passed, assisted = entry.passed, entry.assisted
        yield entry
        if passed is not None:
            entry.passed, entry.assisted = passed, assisted
        self._write()

    def forget(self, lesson: str | None = None) -> None:
        """Forget a lesson, or all of them: the learner asked for it."""
        if lesson is None:
            self._lessons.clear()
        else:
            self._lessons.pop(lesson, None)
        self._write()

    def _write(self) -> None:
        lessons = {
            lesson: {step: asdict(entry) for step, entry in steps.items()} for lesson, steps in self._lessons.items()
        }
        self._home.write("progress.json", {"lessons": lessons})


def read_session(where: Home) -> Session | None:
    """The lesson that is open; None when there is none. Raises FormatError."""
    document = where.read("session.json")
    if document is None:
        return None
    document.pop("format")
    return Session(**document)


def write_session(where: Home, session: Session | None) -> None:
    """Keep what is open; None: nothing is."""
    if session is None:
        where.remove("session.json")
    else:
        where.write("session.json", asdict(session))
