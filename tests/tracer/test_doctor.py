"""The doctor: what it makes of checks that pass, fail and break; and the real one, with and without root."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.command import POWERLESS, run
from tracer import checks, doctor
from tracer.doctor import Result
from tracer.errors import MissingError, ToolMissing


def failing(error: Exception) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "result"),
    [
        (lambda: "fine", Result("x", True, "fine", None)),
        (failing(MissingError("gone", hint="modprobe gone")), Result("x", False, "gone", "modprobe gone")),
        (failing(ValueError("oh")), Result("x", False, "ValueError: oh", None)),
    ],
)
def test_results(monkeypatch: pytest.MonkeyPatch, check: Callable[[], str], result: Result) -> None:
    monkeypatch.setattr(doctor, "all_checks", lambda kubeconfig: [("x", check)])
    assert doctor.examine() == [result]


@pytest.mark.parametrize(
    ("working", "possible", "verdict"),
    [
        ({"fentry", "conntrack"}, True, "The live trace takes the backend fentry."),
        ({"conntrack"}, True, "The live trace takes the backend conntrack. Processes are unknown with it."),
        (set(), False, "The live trace can't run here; --replay can."),
    ],
)
def test_verdict(working: set[str], possible: bool, verdict: str) -> None:
    results = [Result("root", True, "")] + [Result(f"backend {x}", x in working, "") for x in doctor.BACKENDS]
    assert doctor.can_trace(results) is possible
    assert doctor.verdict(results) == verdict


def test_table_fits_and_is_harmless() -> None:
    results = [
        Result("root", True, "user id 0"),
        Result("odd", False, "[bold]no markup[/bold] \x1b]0;x\x07 " + "long " * 30, "apt-get install x\x9b"),
    ]
    for width in (60, 120):
        table = doctor.as_table(results, width=width, colour=False)
        lines = table.splitlines()
        assert max(map(len, lines)) <= width
        assert all(line.isprintable() for line in lines)
        assert "[bold]no" in table
    assert "\\x1b]0;x\\x07" in table
    assert "\x1b[" in doctor.as_table(results, width=120, colour=True)


def test_tool_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissing) as caught:
        checks.tool("no-such-program-anywhere", package="iptables")
    assert caught.value.hint == "apt-get install iptables"


def test_tool_that_fails() -> None:
    with pytest.raises(MissingError, match="fails: exit code 1"):
        checks.tool("false", package="coreutils")
    assert checks.tool("echo", "a\nb", package="coreutils").endswith("/echo, 2 lines")


def results_of(done: Any) -> dict[str, dict[str, Any]]:
    results = json.loads(done.stdout)
    assert all(list(result) == ["check", "ok", "detail", "fix"] for result in results)
    assert all(result["detail"] for result in results)
    assert all("\n" not in (result["fix"] or "") for result in results)
    return {result["check"]: result for result in results}


@pytest.mark.bpf
def test_as_root() -> None:
    done = run("doctor", "-o", "json")
    results = results_of(done)
    assert done.returncode == 0
    for check in ("root", "bcc", "kernel BTF", "BPF ring buffer", "raw tracepoints", "nft", "iptables-nft-save"):
        assert results[check]["ok"], results[check]
    assert results["root"]["fix"] is None


def test_without_powers_it_still_tells_what_it_can() -> None:
    prefix = POWERLESS if os.geteuid() == 0 else ()
    done = run("doctor", "-o", "json", prefix=prefix)
    assert done.returncode == 3
    assert done.stderr == ""
    results = results_of(done)
    assert not results["root"]["ok"] and results["root"]["fix"] == "sudo k8snet-trace doctor"
    assert not any(result["ok"] for name, result in results.items() if name.startswith("backend "))
    assert results["network namespace"]["ok"]
    assert len(results) == len(doctor.all_checks())
    table = run("doctor", prefix=prefix)
    assert table.returncode == 3
    assert "The live trace can't run here; --replay can." in table.stdout
