"""The line form on a real (pseudo-)terminal: width, colour, harmlessness."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.command import Terminal, environment
from tests.tracer.fakes import EXAMPLE
from tracer.escape import cells

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "x.jsonl"
    odd = {**EXAMPLE, "process": {**EXAMPLE["process"], "comm": "\x1b]0;日本\x07"}, "outcome": "no-endpoints"}
    path.write_text("".join(json.dumps(record) + "\n" for record in [EXAMPLE, odd] * 40))
    return str(path)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_every_line_fits(path: str, columns: int) -> None:
    with Terminal("--replay", path, columns=columns) as terminal:
        lines = terminal.finish()
    assert terminal.process.returncode == 0
    assert len(lines) == 80  # a recording is never summed up
    plain = [_ESCAPE.sub("", line) for line in lines]
    assert all(line.isprintable() for line in plain)
    assert max(map(cells, plain)) <= columns
    assert plain[0].startswith("09:00:00.123 curl") and plain[0].endswith("OK 0.4ms")
    assert plain[1].endswith("NO ENDPOINTS 0.4ms")


def test_colour_says_how_it_ended(path: str) -> None:
    with Terminal("--replay", path) as terminal:
        good, bad, *_ = terminal.finish()
    assert re.search(r"\x1b\[32mOK\x1b\[0m", good)
    assert re.search(r"\x1b\[1;31mNO ENDPOINTS\x1b\[0m", bad)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour(path: str, env: dict[str, str]) -> None:
    with Terminal("--replay", path, env=environment(**env)) as terminal:
        terminal.finish()
    assert b"\x1b" not in terminal.screen


def test_empty_no_color_does_not_count(path: str) -> None:
    with Terminal("--replay", path, env=environment(NO_COLOR="")) as terminal:
        terminal.finish()
    assert b"\x1b[" in terminal.screen


def test_json_has_no_colour(path: str) -> None:
    with Terminal("--replay", path, "-o", "json") as terminal:
        lines = terminal.finish()
    assert [json.loads(line)["type"] for line in lines] == ["connection"] * 80
