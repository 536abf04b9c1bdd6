"""The front door of k8snet-lab: help, completion, errors; nothing here starts a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labs.lab import REPOSITORY, lab

FIXTURES = REPOSITORY / "tests" / "fixtures" / "kube-proxy-v1.30.5"


@pytest.mark.parametrize(
    "command", [(), ("up",), ("down",), ("status",), ("exec",), ("shell",), ("kubeconfig",), ("proxy", "render")]
)
def test_everything_has_help(command: tuple[str, ...]) -> None:
    for option in ("-h", "--help"):
        done = lab(*command, option)
        assert done.stdout.startswith(f"Usage: k8snet-lab {' '.join(command)}".rstrip())


@pytest.mark.parametrize("command", [(), ("up",), ("exec",)])
def test_help_shows_examples(command: tuple[str, ...]) -> None:
    assert "sudo k8snet-lab " in lab(*command, "--help").stdout.partition("Examples:")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_K8SNET_LAB_COMPLETE" in lab("completion", shell).stdout


@pytest.mark.parametrize(("words", "expected"), [("k8snet-lab ", "status"), ("k8snet-lab up --proxy ", "nftables")])
def test_completion_works(words: str, expected: str) -> None:
    count = len(words.split(" ")) - 1
    env = {**os.environ, "_K8SNET_LAB_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    code = "import sys; from labs.cli import main; sys.argv[0] = 'k8snet-lab'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert f"plain,{expected}" in done.stdout.split("\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("upp",), "No such command 'upp'"),
        (("up", "--nodes", "x"), "'x' is not a valid integer"),
        (("up", "--nodes", "0"), "1 to 16 nodes"),
        (("up", "--nodes", "17"), "1 to 16 nodes"),
        (("up", "--name", "../x"), "can't name a cluster"),
        (("up", "--name", ""), "can't name a cluster"),
        (("up", "--proxy", "ipvs"), "'ipvs' is not one of"),
        (("exec", "node1"), "Missing argument 'COMMAND...'"),
        (("exec",), "Missing argument 'NODE|NAMESPACE/POD'"),
    ],
)
def test_usage_errors(command: tuple[str, ...], said: str) -> None:
    done = lab(*command, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("command", [("status",), ("kubeconfig",), ("shell", "node1"), ("exec", "node1", "true")])
def test_without_a_cluster(command: tuple[str, ...]) -> None:
    done = lab(command[0], "--name", "no-such-cluster", *command[1:], check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: cluster no-such-cluster is not up\nhint: k8snet-lab up --name no-such-cluster\n"


def test_a_name_can_not_lead_out_of_the_state_directory(tmp_path: Path) -> None:
    """Only a directory of this very test is named, so that a failure can't harm anything else."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    name = os.path.relpath(precious, "/run/k8snet")
    for command in ("down", "status", "kubeconfig", "up"):
        done = lab(command, "--name", name, check=False)
        assert (done.returncode, "can't name a cluster" in done.stderr) == (2, True)
    assert [path.name for path in precious.iterdir()] == ["file"]


def test_a_manifest_that_is_not_there() -> None:
    done = lab("up", "--name", "x", "-f", "/no/such/file", check=False)
    assert (done.returncode, done.stderr) == (1, "error: /no/such/file: No such file or directory\n")


def test_proxy_render_prints_what_the_renderers_give() -> None:
    objects = str(FIXTURES / "objects.json")
    rules = lab("proxy", "render", "-f", objects).stdout
    assert rules.startswith("*mangle\n") and rules.endswith("COMMIT\n")
    assert ":KUBE-SERVICES - [0:0]" in rules
    table = lab("proxy", "render", "--mode", "nftables", "--family", "6", "--node", "node1", "-f", objects).stdout
    assert "table ip6 kube-proxy" in table
