"""Programs for PATH that answer what a test lays down, and keep how they were called.

What belongs here: the programs. What does not: what kubectl and docker really print (the tests say where that is from).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRAM = """#!{python}
import json, os, sys
own = os.path.dirname(os.path.abspath(__file__))
words = [os.path.basename(__file__), *sys.argv[1:]]
call = {{"words": words, "kubeconfig": os.environ.get("KUBECONFIG")}}
call["input"] = None if sys.stdin.isatty() else sys.stdin.buffer.read().decode(errors="replace")
with open(os.path.join(own, "calls.jsonl"), "a") as file:
    file.write(json.dumps(call) + "\\n")
for answer in json.load(open(os.path.join(own, "answers.json"))):
    if " ".join(words).startswith(answer["to"]):
        sys.stdout.write(answer["out"])
        sys.stderr.write(answer["err"])
        sys.exit(answer["code"])
sys.exit(f"nobody laid down an answer to {{words}}")
"""


@dataclass(frozen=True)
class Answer:
    """What is printed for a command line that begins with `to`; the first that fits counts."""

    to: str
    out: str = ""
    err: str = ""
    code: int = 0


class Programs:
    """A directory with `names` in it, to be put before PATH."""

    def __init__(self, directory: Path, *names: str) -> None:
        directory.mkdir()
        self.directory = directory
        for name in names:
            path = directory / name
            path.write_text(PROGRAM.format(python=sys.executable))
            path.chmod(0o755)
        self.answer()

    @property
    def path(self) -> str:
        """For the variable PATH."""
        return f"{self.directory}:{os.environ['PATH']}"

    def answer(self, *answers: Answer) -> None:
        """Lay down what they answer from now on."""
        (self.directory / "answers.json").write_text(json.dumps([asdict(one) for one in answers]))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """How they were called: "words", "input", "kubeconfig"."""
        path = self.directory / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def lines(self) -> list[str]:
        """The command lines."""
        return [" ".join(call["words"]) for call in self.calls]
