"""The house rules of CONTRIBUTING.md that a machine can check, and that the documents tell of things that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs

PROJECT = Path(__file__).parents[1]
PACKAGES = ("tracer", "labs")
MODULES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
SCRIPTS = sorted(path for path in [*(PROJECT / "scripts").iterdir(), PROJECT / ".ci" / "run"] if path.is_file())


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def imports(path: Path) -> Iterator[str]:
    """The top-level names of all modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0]


def test_there_are_modules_documents_and_scripts() -> None:
    assert len(MODULES) > 40
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "KNOWN_ISSUES.md"} <= {path.name for path in DOCUMENTS}
    assert {"setup", "demo", "test", "check", "vmtest", "bench", "run"} <= {path.name for path in SCRIPTS}


def test_only_one_module_imports_bcc() -> None:
    assert [name_of(path) for path in MODULES if "bcc" in imports(path)] == ["tracer/bpf.py"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, (
        "a module starts with what it is for and what does not belong in it"
    )
    assert path.stem not in ("utils", "util", "helpers", "misc", "common"), (
        "a name that says nothing attracts everything"
    )


# What a lesson gives a learner to edit is a program, too.
PROGRAMS = [path for path in MODULES if path.stem == "cli" or path.match("labs/lessons/*/files/*.py")]
LIBRARIES = [path for path in MODULES if path not in PROGRAMS and '__name__ == "__main__"' not in path.read_text()]


@pytest.mark.parametrize("path", LIBRARIES, ids=name_of)
def test_only_programs_exit(path: Path) -> None:
    """sys.exit in a library ends somebody else's process; libraries raise."""
    exits = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "exit" and getattr(node.value, "id", None) == "sys")
        or (isinstance(node, ast.Raise) and any(getattr(n, "id", None) == "SystemExit" for n in ast.walk(node)))
    ]
    assert exits == []


def test_help_needs_nothing_heavy() -> None:
    """The command starts without bcc, pyroute2, iptc and yaml: they are paid for by what uses them."""
    program = "import sys, tracer.cli; print(sorted({'bcc', 'pyroute2', 'iptc', 'yaml', 'urllib3'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"


def test_bpf_programs_carry_both_licences() -> None:
    sources = sorted((PROJECT / "bpf").rglob("*.[ch]"))
    assert len(sources) > 10
    without = [name_of(path) for path in sources if not re.search(LICENCE, path.read_text().split("\n", 1)[0])]
    assert without == []


LICENCE = (
    r"SPDX-License-Identifier: (Apache-2\.0 OR GPL-2\.0|GPL-2\.0-only OR Apache-2\.0|Apache-2\.0 OR GPL-2\.0-only)\b"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_is_executable_and_says_what_it_does(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert path.stat().st_mode & 0o111
    assert first in ("#!/bin/bash", "#!/bin/sh")
    assert second.startswith("# ")


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_parses(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    dead = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert dead == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_documents_name_exist(path: Path) -> None:
    """Whatever a document sets as code and that looks like a path of this repository is one."""
    words = re.findall(r"`((?:tracer|labs|bpf|scripts|tests|docs|\.ci)/[\w./*-]+)`", path.read_text())
    assert [word for word in words if not list(PROJECT.glob(word.rstrip("/")))] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_options_that_documents_name_exist(path: Path) -> None:
    """Each `k8snet-trace … --option` of a document is an option of that command, or of the subcommand it names."""
    unknown = []
    for line in re.findall(r"k8snet-trace [^`\n#|]*", path.read_text()):
        words = line.split()[1:]
        known = trace_options_of(words[0] if words and words[0].isalpha() else "")
        unknown += [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    assert unknown == []


def trace_options_of(subcommand: str) -> set[str]:
    from tracer.cli import cli

    command = cli.commands.get(subcommand, cli)
    parameters = [*command.params]
    if command is not cli:
        parameters += [parameter for below in getattr(command, "commands", {}).values() for parameter in below.params]
    return {option for each in parameters for option in (*each.opts, *each.secondary_opts)} | {"--help"}


def test_changelog_starts_with_the_version_or_what_is_not_released() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(
        r"^## \[?([^\]\n]+?)\]?(?: - (\d{4}-\d\d-\d\d))?$", (PROJECT / "CHANGELOG.md").read_text(), re.M
    )
    assert headings[0][0] == "Unreleased" or headings[0][0] == version


def test_changelog_entries_are_one_sentence() -> None:
    text = (PROJECT / "CHANGELOG.md").read_text().split("\n## ", 1)[1]
    entries = [
        " ".join(entry.split()) for entry in re.split(r"\n- |\n#|\n\n", text) if entry[:1].isupper() or entry[:1] == "`"
    ]
    entries = [
        entry for entry in entries if not entry.startswith(("Unreleased", "Added", "Changed", "Fixed", "Removed"))
    ]
    assert entries
    assert [entry for entry in entries if not entry.endswith(".") or re.search(r"[.!?] [A-Z]", entry)] == []


def test_known_issues_have_symptom_cause_and_workaround() -> None:
    issues = (PROJECT / "KNOWN_ISSUES.md").read_text().split("\n## ")[1:]
    assert issues
    for issue in issues:
        assert re.findall(r"^\*\*(\w+)\*\*", issue, re.M) == ["Symptom", "Cause", "Workaround"], issue.splitlines()[0]


def test_messages_in_the_troubleshooting_table_are_messages_of_the_code() -> None:
    """Each message of the first column, up to its variable parts (…, N, names), stands somewhere in the sources."""
    sources = "\n".join(path.read_text() for path in [*MODULES, *SCRIPTS, *sorted((PROJECT / "tests/vm").glob("*.py"))])
    rows = re.findall(r"^\| .*?`([^`]+)`.* \|.*\|.*\|$", (PROJECT / "docs/troubleshooting.md").read_text(), re.M)
    assert len(rows) > 10
    variable = r"…|\bN\b|fentry|EPERM|k8snet\b|apt-get|/usr/local/bin/k8snet-trace|iptables"
    pieces = [piece.strip(" :") for row in rows for piece in re.split(variable, row)]
    assert [piece for piece in pieces if len(piece) > 3 and piece not in sources] == []


def test_the_tests_that_run_alone_are_there() -> None:
    assert [name for name in needs.ALONE if not (PROJECT / "tests" / name).exists()] == []
