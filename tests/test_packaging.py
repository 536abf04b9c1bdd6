"""The wheel: it holds exactly the BPF programs that git knows, and works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PROGRAMS = "tracer/_bpf/"


def git_files(*paths: str) -> list[str]:
    """Files under version control, as relative paths. Works for root in somebody else's checkout, too."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *paths]
    output = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    return [name for name in output.split("\0") if name and (PROJECT / name).exists()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows, with some rubbish in it that .gitignore names: what a clone looks like after a week."""
    source = tmp_path_factory.mktemp("source")
    for name in git_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, source / name)
    for rubbish in (
        "bpf/__pycache__/x.pyc",
        "bpf/include/__pycache__/y.pyc",
        "tracer/.mypy_cache/z.json",
        ".cache/vm/big",
    ):
        (source / rubbish).parent.mkdir(parents=True, exist_ok=True)
        (source / rubbish).write_text("rubbish")
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from it, without asking the network for anything."""
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        target,
        source,
    ]
    subprocess.run(command, check=True)
    (wheel,) = target.glob("k8snet-*.whl")
    return wheel


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_exactly_the_bpf_files_that_git_knows(contents: set[str]) -> None:
    expected = {PROGRAMS + name.removeprefix("bpf/") for name in git_files("bpf")}
    assert any(name.endswith(".c") for name in expected)
    assert any(name.startswith(PROGRAMS + "include/kernel/") for name in expected)
    assert {name for name in contents if name.startswith(PROGRAMS)} == expected


def test_wheel_holds_both_packages_and_nothing_else(contents: set[str]) -> None:
    expected = set(git_files("tracer", "labs")) | {PROGRAMS + n.removeprefix("bpf/") for n in git_files("bpf")}
    assert {name for name in contents if ".dist-info/" not in name} == expected
    assert "tracer/schema/record.schema.json" in contents


def test_wheel_carries_both_licences(contents: set[str]) -> None:
    licences = {name.split(".dist-info/")[1] for name in contents if "licenses/" in name}
    assert licences == {"licenses/LICENSE", "licenses/bpf/LICENSE"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a fresh environment that holds the wheel.

    Its dependencies come from this environment's own site-packages, read through a .pth file: paths named there are
    searched last and their .pth files ignored, so that the editable installation of the checkout is out of sight.
    """
    environment = tmp_path_factory.mktemp("installed")
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", environment], check=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command far from any checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = [str(installed / command[0]), *command[1:]]
    return subprocess.run(path, cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_installed_modules_are_those_of_the_wheel(installed: Path) -> None:
    where = run(installed, "python", "-c", "import tracer, labs; print(tracer.__file__, labs.__file__)")
    assert all(path.startswith(str(installed.parent)) for path in where.stdout.split()), where


@pytest.mark.parametrize("command", ["k8snet-trace", "k8snet-lab"])
def test_installed_command_helps(installed: Path, command: str) -> None:
    helped = run(installed, command, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"Usage: {command}")


def test_installed_command_says_its_version(installed: Path) -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert run(installed, "k8snet-trace", "--version").stdout.split()[-1] == version


def test_installed_command_finds_its_programs(installed: Path) -> None:
    shown = run(installed, "k8snet-trace", "--show-bpf")
    assert shown.returncode == 0, shown.stderr
    assert "struct connection_record" in shown.stdout
