"""The generation grows when, and only when, an answer that was given may have changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tracer.names import changes as module
from tracer.names.changes import Changes
from tracer.names.index import Index, Remembered, shift


@pytest.fixture
def changes() -> Iterator[Changes]:
    running = Changes()
    running.start()
    yield running
    running.close()
    running.close()


def grows(changes: Changes, since: int, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while changes.generation == since and time.monotonic() < end:
        time.sleep(0.005)
    return changes.generation != since


def test_what_nobody_asked_about_changes_nothing(changes: Changes) -> None:
    changes.asked("10.0.0.1")
    changes.touch(["10.0.0.2", "uid"])
    assert not grows(changes, 0, 0.1)
    changes.touch(["10.0.0.2", "10.0.0.1"])
    assert grows(changes, 0)


def test_after_a_change_questions_must_be_asked_again(changes: Changes) -> None:
    changes.asked("a")
    changes.touch(["a"])
    assert grows(changes, 0)
    changes.touch(["a"])
    assert not grows(changes, 1, 2 * module.MIN_SECONDS)


def test_a_mark_concerns_everybody(changes: Changes) -> None:
    changes.mark()
    assert grows(changes, 0)


def test_many_changes_are_few_generations(changes: Changes) -> None:
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        changes.mark()
        time.sleep(0.001)
    assert 2 <= changes.generation <= 1.0 / module.MIN_SECONDS + 2


def test_too_many_questions_make_every_change_count(changes: Changes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ASKED", 10)
    for n in range(100):
        changes.asked(str(n))
    changes.touch(["never asked"])
    assert grows(changes, 0)


def test_closing_without_starting() -> None:
    Changes().close()


def test_an_index_replaces_in_one_step_and_keeps_doubles() -> None:
    index: Index[str, int] = Index()
    index.replace("k", None, 1)
    index.replace("k", None, 1)
    assert (index.get("k"), index.only("k")) == ((1, 1), 1)
    index.replace("k", 1, 2)
    assert (index.get("k"), index.only("k")) == ((1, 2), None)
    index.replace("k", 1, None)
    index.replace("k", 2, None)
    index.replace("k", 9, None)
    assert (index.get("k"), index.only("k"), len(index)) == ((), None, 0)


def test_shift_tells_which_keys_changed() -> None:
    index: Index[str, int] = Index()
    assert sorted(shift(index, [], [("a", 1), ("b", 2)])) == ["a", "b"]
    assert shift(index, [("a", 1), ("b", 2)], [("b", 2), ("a", 1)]) == []
    assert sorted(shift(index, [("a", 1), ("b", 2)], [("a", 3), ("c", 4)])) == ["a", "b", "c"]
    assert [index.get(key) for key in "abc"] == [(3,), (), (4,)]


def test_the_remembered_are_bounded() -> None:
    remembered: Remembered[int, str] = Remembered(seconds=60.0, limit=10)
    for n in range(100):
        remembered.put(n, str(n))
    assert len(remembered) == 10
    assert (remembered.get(99), remembered.get(0)) == ("99", None)
