"""How a guest is run and watched, with a shell script in place of vng: it hangs, dies and succeeds on demand."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.needs import BACKENDS
from tests.vm.guest import Guest, GuestError
from tests.vm.kernels import Kernel


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    return tmp_path


def guest(project: Path, script: str, backends: Sequence[str] = BACKENDS) -> Guest:
    """A guest whose vng is `script`, with the results directory in $R."""
    vng = project / ".venv" / "bin" / "vng"
    vng.write_text(f"#!/bin/bash\nR={project}/results\n{script}\n")
    vng.chmod(0o755)
    kernel = Kernel("linux-image-6.1.0-1-amd64", "6.1.1-1", project)
    return Guest(kernel, project, project / "results", slow=10, kvm=False, backends=backends)


def test_report_and_console_come_back(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = guest(project, "echo '[    0.000000] boot'; echo 3 passed; echo '<xml/>' >$R/junit.xml; echo 0 >$R/exit-code")
    assert one.run([], limit=10).read_text() == "<xml/>\n"
    assert capsys.readouterr().out == "6.1.0-1-amd64 | 3 passed\n"
    assert (project / "results/console.log").read_text() == "[    0.000000] boot\n3 passed\n"


def test_failed_tests_are_a_report_too(project: Path) -> None:
    one = guest(project, "echo '<xml/>' >$R/junit.xml; echo 1 >$R/exit-code; exit 255")
    assert one.run([], limit=10).exists()


def test_a_kernel_that_dies_is_an_error(project: Path) -> None:
    """Results of an earlier run must not be taken for this one's."""
    guest(project, "echo '<xml/>' >$R/junit.xml; echo 0 >$R/exit-code").run([], limit=10)
    with pytest.raises(GuestError, match=r"ended without a result; its console: .*console\.log"):
        guest(project, "echo 'Kernel panic - not syncing'").run([], limit=10)


@pytest.mark.parametrize("code", ["2", "3", "4", "5", "137", ""])
def test_pytest_that_did_not_run_to_its_end_is_an_error(project: Path, code: str) -> None:
    with pytest.raises(GuestError, match=f"exit code {code}"):
        guest(project, f"echo '<xml/>' >$R/junit.xml; echo {code} >$R/exit-code").run([], limit=10)


def test_past_its_limit_a_guest_ends_with_all_its_processes(project: Path) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match="did not end within 1 s"):
        guest(project, "sleep 60 & echo $! >$R/pid; wait").run([], limit=1)
    assert time.monotonic() - started < 10
    assert gone(int((project / "results/pid").read_text()))


def test_ended_from_another_thread(project: Path) -> None:
    one = guest(project, "echo $$ >$R/pid; sleep 60")
    timer = threading.Timer(0.5, one.end, ["interrupted"])
    timer.start()
    with pytest.raises(GuestError, match="interrupted"):
        one.run([], limit=30)
    timer.join()
    assert gone(int((project / "results/pid").read_text()))


def gone(pid: int) -> bool:
    """Whether the process is gone, or a zombie that its new parent has not yet collected."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_what_the_guest_is_told(project: Path) -> None:
    """The arguments reach the script inside as they are, and hardware virtualisation only on demand."""
    one = guest(project, """printf '%s\\n' "$@" >$R/arguments; echo 0 >$R/exit-code; touch $R/junit.xml""")
    one.run(["tests/kernel", "-k", "a or b"], limit=10)
    arguments = (project / "results/arguments").read_text()
    assert "--disable-kvm\n" in arguments
    assert f"tests/vm/inside.sh {project} tests/kernel -k 'a or b'" in arguments
    all_of_them = "fentry,kprobe,tracepoint,conntrack"
    assert f"K8SNET_SLOW=10 K8SNET_BACKENDS={all_of_them} K8SNET_REQUIRE_BACKENDS={all_of_them}" in arguments


def test_only_some_backends(project: Path) -> None:
    script = """printf '%s\\n' "$@" >$R/arguments; echo 0 >$R/exit-code; touch $R/junit.xml"""
    guest(project, script, backends=("kprobe", "conntrack")).run([], limit=10)
    told = (project / "results/arguments").read_text()
    assert "K8SNET_BACKENDS=kprobe,conntrack K8SNET_REQUIRE_BACKENDS=kprobe,conntrack" in told
