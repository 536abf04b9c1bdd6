"""A lesson as it reads on another cluster than the one it was written on: names and addresses of that one are put in
place of the miniature cluster's, and steps that can't be done there are only read.

    node1, 172.18.0.2  ─▶  k8snet-control-plane, 172.18.0.3

What belongs here: from a lesson to a lesson, and from a text to a text. What does not: which names and addresses a
cluster has (`labs.engine.kind`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from labs.engine.spec import WORLDS, Kind, Lesson, Step

Value = TypeVar("Value")
KEPT = {"id", "needs", "concepts", "assumes", "requires"}
NAMES = {"miniature": "the cluster in miniature", "kind": "a kind cluster"}


def lesson(one: Lesson, world: str, words: Mapping[str, str]) -> Lesson:
    """The lesson on `world`, with each of `words` in place of what stands for it in the files."""
    told = in_place(one, words) if words else one
    if all(world in step.on for step in told.steps):
        return told
    steps = tuple(step if world in step.on else _only_read(step) for step in told.steps)
    sections = tuple(
        section if world in step.on else replace(section, text=f"*{_why(step)}*\n\n{section.text}", blocks=())
        for step, section in zip(told.steps, told.sections, strict=True)
    )
    return replace(told, steps=steps, sections=sections)


def _only_read(step: Step) -> Step:
    nothing: dict[str, Any] = dict.fromkeys(("checks", "hints", "faults", "apply", "files"), ())
    return replace(step, kind=Kind.READ, question=None, prediction=None, **nothing)


def _why(step: Step) -> str:
    where = " and ".join(NAMES[world] for world in WORLDS if world in step.on)
    return f"To be done on {where} only, and here to be read: {step.why}"


def in_place(value: Value, words: Mapping[str, str]) -> Value:
    """A value with all texts in it replaced, whatever it is made of; identifiers, enumerations and paths stay."""
    changed: Any = value
    if type(value) is str:
        changed = text(str(value), words)
    elif isinstance(value, Mapping):
        changed = {key: in_place(item, words) for key, item in value.items()}
    elif isinstance(value, tuple | list):
        changed = type(value)(in_place(item, words) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name not in KEPT]
        changed = replace(value, **{name: in_place(getattr(value, name), words) for name in names})
    return cast(Value, changed)


def text(one: str, words: Mapping[str, str]) -> str:
    """A text with each of `words` replaced, all at once; a word is no part of a longer one."""
    if not words:
        return one
    longest_first = sorted(words, key=len, reverse=True)
    pattern = rf"(?<![\w.])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    return re.sub(pattern, lambda found: words[found[0]], one)
