"""The check of a learner's BPF program: what is said of each mistake, from what the program reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labs.engine.checks import check
from labs.engine.checks.bpfprogram import Probe, judge
from labs.engine.outcome import Result
from labs.engine.spec import Named
from tests.cli.test_load_command import COUNTING, PROGRAM
from tests.labs.engine.fake import FakeWorld, context

PROBE = Probe(42, "check-1", "127.5.6.7", 2000)
OURS = {"pid": 42, "comm": "check-1", "address": "127.5.6.7", "port": 2000}
OTHER = {"pid": 7, "comm": "curl", "address": "10.96.0.1", "port": 443}
ALL = {"pid": "{pid}", "comm": "{comm}", "address": "{address}", "port": "{port}"}
TIMES = {"address": "{address}", "times": "{number}"}


def told(records: list[dict[str, Any]], expect: dict[str, str]) -> tuple[str, str]:
    outcome = judge(PROBE, records, expect, 2, "look")
    return outcome.reason or str(outcome.result), outcome.seen


@pytest.mark.parametrize(
    ("records", "expect", "reason", "seen"),
    [
        ([OURS, OTHER, OURS], ALL, "pass", "pid=42 comm=check-1"),
        ([], ALL, "none", "none"),
        ([OTHER], ALL, "none", "none of them; 1 of others"),
        ([OURS], ALL, "none", "1 records of 2"),
        ([OURS] * 3, ALL, "too-many", "3 records of 2"),
        ([OURS, {**OURS, "pid": 43}], ALL, "fields", "pid is 43, and should be 42"),
        ([{**OURS, "address": "127.0.0.1"}] * 2, ALL, "fields", "should be 127.5.6.7"),
        ([{"pid": 42}], ALL, "fields", "no field comm; there are pid"),
        ([{**OURS, "times": 1}, {**OURS, "times": 2}], TIMES, "pass", "times=2"),
        ([{**OURS, "times": 1}] * 2, TIMES, "fields", "times is 1, and should be 2"),
    ],
)
def test_records_are_judged(records: list[dict[str, Any]], expect: dict[str, str], reason: str, seen: str) -> None:
    found = told(records, expect)
    assert found[0] == reason
    assert seen in found[1]


FOUND = {
    "right": (PROGRAM, "pass"),
    "all states": (PROGRAM.replace("args->newstate != 2", "args->family != 2"), "too-many"),
    "only those that stand": (PROGRAM.replace("!= 2", "!= 1"), "none"),
    "the thread": (PROGRAM.replace(" >> 32", ""), "fields"),
    "a typo": (PROGRAM.replace("newstate", "newstat"), "compile"),
    "refused": (COUNTING, "refused"),
    "no tracepoint": (PROGRAM.replace("inet_sock_set_state", "none"), "program"),
    "no file": (None, "missing"),
}


@pytest.mark.bpf
@pytest.mark.parametrize("name", FOUND)
def test_a_program_is_loaded_and_judged(name: str, tmp_path: Path) -> None:
    text, reason = FOUND[name]
    if text is not None:
        (tmp_path / "own.c").write_text(text)
    spec = Named("bpf_program", {"file": "own.c", "expect": ALL})
    outcome = check(context(FakeWorld(), tmp_path), spec)
    assert (outcome.reason or outcome.result) == reason, outcome.seen
    assert (outcome.result is Result.PASS) == (name == "right")
