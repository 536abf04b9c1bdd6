"""Sessions of a learner, word for word: each file of transcripts/ is a list of kubectl commands and what they print.

A line that begins with "$ " is a command, those below it are its output and, when it fails, "[1]". What differs from
run to run is masked:

    {age} {ip} {port} {time} {uid}    as they are called
    {id} {hash}                       the ends of a pod's and a ReplicaSet's name
    {*}                               anything within a line
    ...                               any lines, or none

and spaces between columns count as one. Each file has a namespace of its own, called what the file is.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs.kubectl import Kubectl, in_namespace, programs
from tests.labs.lab import Lab

pytestmark = pytest.mark.root

TRANSCRIPTS = sorted(Path(__file__).with_name("transcripts").glob("*.txt"))
LATER_WORDS = 34  # from 1.34 on, "deleted" is followed by the namespace
MASKS = {
    "age": r"(?:\d+[smhdy]){1,2}",
    "ip": r"\d+\.\d+\.\d+\.\d+",
    "port": r"\d{4,5}",
    "time": r"\S+ \S+ \S+ \S+ \S+ \+0000|\d{4}-\d\d-\d\dT\S+Z",
    "uid": r"[0-9a-f-]{36}",
    "id": r"[bcdfghjklmnpqrstvwxz2456789]{5}",
    "hash": r"[bcdfghjklmnpqrstvwxz2456789]{6,10}",
    "*": r".*",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("--nodes", "2")) as running:
        yield running


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a transcript, each with the lines that are to come."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    for part in parts[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = command[:-1] + more.strip()
        yield command, output.strip("\n").splitlines()


def pattern(lines: list[str]) -> str:
    """The regular expression for masked output."""
    found = []
    for line in lines:
        if line.strip() == "...":
            found.append(r"(?:.*\n)*?")
            continue
        pieces = re.split(r"\{([a-z*]+)\}", " ".join(line.split()))
        masked = [f"(?:{MASKS[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)]
        found.append("".join(masked) + r"\n")
    return "".join(found)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_a_learner_sees(lab: Lab, path: Path, tmp_path: Path) -> None:
    program = next((one for one in programs() if minor_version(one) < LATER_WORDS), None)
    kubeconfig = lab.kubeconfig()
    for kubectl in in_kubectl(program, kubeconfig, path.stem, tmp_path):
        for command, expected in steps(path.read_text()):
            words = shlex.split(command)
            assert words[0] == "kubectl"
            feed = None
            if words[-2:-1] == ["<"]:
                feed = (path.parent / words[-1]).read_text()
                words = words[:-2]
            done = kubectl.run(*words[1:], feed=feed)
            code = f"[{done.returncode}]\n" if done.returncode else ""
            lines = (done.stdout + done.stderr).strip("\n").splitlines()
            told = "".join(" ".join(line.split()) + "\n" for line in lines) + code
            assert re.fullmatch(pattern(expected), told), f"$ {command}\n{told}\n--- and not\n" + "\n".join(expected)


def minor_version(program: str) -> int:
    """The number behind "1." of a kubectl; 99 when it tells none."""
    done = subprocess.run([program, "version", "--client"], capture_output=True, text=True, check=False, timeout=30)
    found = re.search(r"v1\.(\d+)", done.stdout)
    return int(found[1]) if found else 99


def in_kubectl(program: str | None, kubeconfig: str, words: str, home: Path) -> Iterator[Kubectl]:
    """A kubectl in a namespace, as something to iterate over once."""
    with in_namespace(program, kubeconfig, words, home) as kubectl:
        yield kubectl


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 3
    assert all(sum(1 for _ in steps(path.read_text())) >= 10 for path in TRANSCRIPTS)


@pytest.mark.parametrize(
    ("masked", "real", "same"),
    [
        ("web-{hash}-{id}   1/1  {age}", "web-5c6c96d6d8-g7znk 1/1 2m5s\n", True),
        ("web-{hash}-{id}   1/1  {age}", "web-5c6c96d6d8-g7znk 0/1 2m5s\n", False),
        ("a\n...\nz", "a\nb\nc\nz\n", True),
        ("a\n...\nz", "a\nz\n", True),
        ("a\nz", "a\nb\nz\n", False),
        ("{ip}:80", "10.96.0.1:80\n", True),
        ("{ip}:80", "10x96.0.1:80\n", False),
    ],
)
def test_masks(masked: str, real: str, same: bool) -> None:
    assert (re.fullmatch(pattern(masked.splitlines()), real) is not None) is same
