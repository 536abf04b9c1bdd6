"""Lessons as they read on another cluster."""

from __future__ import annotations

import pytest

from labs.engine import wording
from labs.engine.course import Course

WORDS = {"node1": "shop-control-plane", "node2": "shop-worker", "172.18.0.2": "172.18.0.3", "172.18.0.3": "172.18.0.2"}


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("exec node1 -- ip route", "exec shop-control-plane -- ip route"),
        ("node2's, node1. (node2)", "shop-worker's, shop-control-plane. (shop-worker)"),
        ("etcd-node1 kubernetes.io/hostname=node2", "etcd-shop-control-plane kubernetes.io/hostname=shop-worker"),
        ("node10 mynode1 node1x", "node10 mynode1 node1x"),
        ("172.18.0.2 > 172.18.0.3", "172.18.0.3 > 172.18.0.2"),
        ("172.18.0.2:30080 172.18.0.3/16 IP 172.18.0.2.4789:", "172.18.0.3:30080 172.18.0.2/16 IP 172.18.0.3.4789:"),
        ("172.18.0.20 1.172.18.0.2 172.18.0.0/16", "172.18.0.20 1.172.18.0.2 172.18.0.0/16"),
        ("", ""),
    ],
)
def test_words_are_replaced_at_once(text: str, there: str) -> None:
    assert wording.text(text, WORDS) == there
    assert wording.text(text, {}) == text


def test_a_whole_lesson() -> None:
    lesson = Course.read().find("network-model")
    there = wording.lesson(lesson, "miniature", WORDS)
    assert "node1" in repr(lesson.sections)
    for words in (repr(there.sections), repr(there.steps), there.debrief, there.introduction):
        assert "node1" not in words
        assert "node2" not in words
    assert [step.id for step in there.steps] == [step.id for step in lesson.steps]
    assert [step.kind for step in there.steps] == [step.kind for step in lesson.steps]
    assert (there.id, there.needs, there.directory, there.requires) == (
        lesson.id,
        lesson.needs,
        lesson.directory,
        lesson.requires,
    )
    assert wording.lesson(lesson, "miniature", {}) == lesson
