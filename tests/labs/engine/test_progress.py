"""What a learner has done is kept, whole, and never goes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labs.engine.progress import Home, Progress, Session, home, read_session, write_session
from tracer.errors import FormatError


@pytest.fixture
def where(tmp_path: Path) -> Home:
    return Home(tmp_path / "state" / "k8snet", tmp_path / "files", (os.geteuid(), os.getegid()))


def test_it_is_kept(where: Home) -> None:
    with Progress(where).change("web", "open") as entry:
        entry.passed, entry.hints, entry.answer = 5.0, 2, "x"
    kept = Progress(where).step("web", "open")
    assert (kept.passed, kept.hints, kept.answer, kept.assisted) == (5.0, 2, "x", False)
    assert Progress(where).passed("web") == {"open"}
    assert Progress(where).passed("other") == set()


def test_a_pass_stays_and_is_never_made_assisted(where: Home) -> None:
    progress = Progress(where)
    with progress.change("web", "open") as entry:
        entry.passed = 5.0
    with progress.change("web", "open") as entry:
        entry.passed, entry.assisted = None, True
    assert (progress.step("web", "open").passed, progress.step("web", "open").assisted) == (5.0, False)


def test_forgetting(where: Home) -> None:
    progress = Progress(where)
    for lesson in ("one", "two"):
        with progress.change(lesson, "a") as entry:
            entry.passed = 1.0
    progress.forget("one")
    assert (Progress(where).passed("one"), Progress(where).passed("two")) == (set(), {"a"})
    progress.forget()
    assert Progress(where).passed("two") == set()


def test_nothing_is_left_half_written(where: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(where).change("web", "a") as entry:
        entry.passed = 1.0
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="No space left"), Progress(where).change("web", "b") as entry:
        entry.passed = 2.0
    monkeypatch.undo()
    assert Progress(where).passed("web") == {"a"}
    assert [path.name for path in where.directory.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_file_that_is_not_ours_is_left_alone(where: Home, text: str) -> None:
    where.make(where.directory)
    (where.directory / "progress.json").write_text(text)
    with pytest.raises(FormatError, match=r"progress\.json"):
        Progress(where)
    assert (where.directory / "progress.json").read_text() == text


def test_the_session(where: Home) -> None:
    assert read_session(where) is None
    session = Session("web", "miniature", "k8snet", {"a": 1.5}, ["a"], {"b": "x"})
    write_session(where, session)
    assert read_session(where) == session
    write_session(where, None)
    assert read_session(where) is None


def test_the_state_directory_of_the_user_behind_sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("K8SNET_LAB_FILES", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1")  # daemon, on Debian
    monkeypatch.setenv("HOME", "/root")
    assert home().directory == Path("/usr/sbin/.local/state/k8snet")
    assert home().workspace("web") == Path("/usr/sbin/k8snet-lab/web")
    monkeypatch.setenv("SUDO_UID", "987654")  # nobody
    assert home().directory == Path("/root/.local/state/k8snet")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert home().directory == tmp_path / "k8snet"


@pytest.mark.root
def test_files_belong_to_that_user(tmp_path: Path) -> None:
    where = Home(tmp_path / "a" / "b", tmp_path / "files", (1, 1))
    with Progress(where).change("web", "a") as entry:
        entry.passed = 1.0
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (where.directory, where.directory.parent)] == [
        (1, 1)
    ] * 2
    assert (where.directory / "progress.json").stat().st_uid == 1
    assert json.loads((where.directory / "progress.json").read_text())["format"] == 1
