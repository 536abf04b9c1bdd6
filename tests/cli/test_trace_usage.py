"""Help, usage errors, completion: what k8snet-trace says without tracing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import environment, run
from tests.tracer.fakes import EXAMPLE

WORDS = (
    *("--namespace", "--pod", "--service", "--node", "--comm", "--pid", "--port", "--protocol", "--failed"),
    *("--count", "--duration", "--ready-file", "--record", "--replay", "--backend", "--ring-buffer", "--show-bpf"),
    *("--kubeconfig", "--no-names", "doctor", "completion", "Examples:", "Filters:", "Output:", "Source:", "Names:"),
)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_tells_all_options_and_examples(option: str) -> None:
    done = run(option)
    assert (done.returncode, done.stderr) == (0, "")
    for word in WORDS:
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_version() -> None:
    assert run("--version").stdout == "k8snet-trace, version 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "No such option"),
        (["nonsense"], "No such command"),
        (["--count", "0"], "--count"),
        (["--count", "many"], "--count"),
        (["--duration", "-1"], "--duration"),
        (["--backend", "ebpf"], "--backend"),
        (["--port", "65536"], "--port"),
        (["--protocol", "icmp"], "--protocol"),
        (["--ring-buffer", "12345"], "no power of two"),
        (["--ring-buffer", "a lot"], "no size"),
        (["--ring-buffer", "3M"], "no power of two"),
        (["-o", "xml"], "--output"),
        (["--count", "3", "doctor"], "--count belongs to the live trace, not to doctor"),
        (["completion"], "bash"),
        (["completion", "csh"], "csh"),
        (["--show-bpf", "--backend", "conntrack"], "the conntrack backend loads no BPF"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and message in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("shell", "check"),
    [("bash", ["bash", "-n"]), ("zsh", None), ("fish", None)],
)
def test_completion(shell: str, check: list[str] | None) -> None:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_K8SNET_TRACE_COMPLETE" in done.stdout
    if check is not None:
        subprocess.run(check, input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("k8snet-trace --ba", {"--backend"}),
        ("k8snet-trace --backend tr", {"tracepoint"}),
        ("k8snet-trace do", {"doctor"}),
        ("k8snet-trace doctor -o ", {"table", "json"}),
    ],
)
def test_completion_answers(words: str, offered: set[str]) -> None:
    request = {"_K8SNET_TRACE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    answer = run(env=environment(**request)).stdout
    assert {line.partition(",")[2] for line in answer.splitlines()} == offered


def test_show_bpf_prints_c_and_needs_no_root() -> None:
    done = run("--show-bpf", "--backend", "tracepoint")
    assert (done.returncode, done.stderr) == (0, "")
    assert "struct connection_shape" in done.stdout


def test_a_defect_shows_no_traceback_unless_asked(tmp_path: Path) -> None:
    recording = tmp_path / "x.jsonl"
    recording.write_text(json.dumps(EXAMPLE))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import tracer.replay\ndef broken(*arguments, **options): raise ZeroDivisionError('oh')\n"
        "tracer.replay.replay = broken\n"
    )
    env = environment(PYTHONPATH=str(tmp_path / "broken"))
    done = run("--replay", str(recording), env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: ZeroDivisionError: oh\nhint: this is a defect of k8snet; K8SNET_DEBUG=1 shows where\n" in done.stderr
    shown = run("--replay", str(recording), env={**env, "K8SNET_DEBUG": "1"})
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr and "error: ZeroDivisionError: oh" in shown.stderr
