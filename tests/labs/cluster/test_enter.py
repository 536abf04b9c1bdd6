"""`exec` and `shell`: a command in a pod behaves as if it were here, and is nevertheless there."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.labs.lab import REPOSITORY, Lab, lab, start_time

pytestmark = pytest.mark.root

POD = "default/client"


class TestStreams:
    def test_exit_status(self, cluster: Lab) -> None:
        for status in (0, 1, 7, 255):
            assert cluster.exec(POD, "sh", "-c", f"exit {status}", check=False).returncode == status

    def test_a_signal_is_128_and_more(self, cluster: Lab) -> None:
        assert cluster.exec(POD, "sh", "-c", "kill -TERM $$", check=False).returncode == 128 + signal.SIGTERM

    def test_standard_streams(self, cluster: Lab) -> None:
        done = cluster.exec(POD, "sh", "-c", "cat; echo odd >&2", feed="through\n")
        assert (done.stdout, done.stderr) == ("through\n", "odd\n")

    def test_a_megabyte_each_way(self, cluster: Lab) -> None:
        text = "0123456789abcde\n" * 65536
        assert cluster.exec(POD, "cat", feed=text).stdout == text

    def test_options_of_the_command_are_its_own(self, cluster: Lab) -> None:
        assert cluster.exec(POD, "echo", "--name", "x", "-h", "--").stdout == "--name x -h --\n"

    def test_no_such_command(self, cluster: Lab) -> None:
        done = cluster.exec(POD, "no-such-command", check=False)
        assert (done.returncode, done.stderr) == (127, f"error: no-such-command: not found in {POD}\n")

    def test_not_a_program(self, cluster: Lab) -> None:
        assert cluster.exec(POD, "/etc/hostname", check=False).returncode == 126

    def test_a_closed_pipe_ends_the_command(self, cluster: Lab) -> None:
        process = cluster.spawn(POD, "yes", stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(timeout=10) == 128 + signal.SIGPIPE


class TestPython:
    def test_a_file_of_this_machine_runs_there_with_this_interpreter(self, cluster: Lab, tmp_path: Path) -> None:
        file = tmp_path / "who.py"
        file.write_text("import socket, sys, scapy\nprint(socket.gethostname(), sys.executable, *sys.argv[1:])\n")
        done = cluster.run("python", POD, str(file), "--", "-x", "1")
        assert done.stdout == f"client {sys.executable} -x 1\n"

    def test_the_file_is_read_anew_each_time(self, cluster: Lab, tmp_path: Path) -> None:
        file, other = tmp_path / "n.py", tmp_path / "other.py"
        for number in (1, 2):  # replaced as editors do it
            other.write_text(f"print({number})\n")
            other.rename(file)
            assert cluster.run("python", POD, str(file)).stdout == f"{number}\n"

    def test_input_and_exit_status_are_passed_through(self, cluster: Lab, tmp_path: Path) -> None:
        file = tmp_path / "n.py"
        file.write_text("import sys\nsys.exit(int(input()))\n")
        assert cluster.run("python", "node1", str(file), feed="7\n", check=False).returncode == 7

    def test_no_such_file(self, cluster: Lab) -> None:
        assert cluster.run("python", POD, "/no/such.py", check=False).returncode == 2


class TestSignals:
    def run_trap(self, cluster: Lab, name: str) -> subprocess.Popen[str]:
        script = f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done"
        process = cluster.spawn(POD, "sh", "-c", script, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
    def test_signals_are_passed_on(self, cluster: Lab, name: str) -> None:
        process = self.run_trap(cluster, name)
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.communicate(timeout=10)[0] == f"got {name}\n"
        assert process.returncode == 3

    def test_killing_exec_kills_the_command(self, cluster: Lab) -> None:
        process = self.run_trap(cluster, "TERM")
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        started = start_time(child)
        process.kill()
        process.communicate(timeout=10)
        deadline = time.monotonic() + 5
        while start_time(child) == started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert start_time(child) != started


class TestPlace:
    def test_namespaces_are_the_pods(self, cluster: Lab) -> None:
        pod = next(pod for pod in cluster.status()["pods"] if f"{pod['namespace']}/{pod['name']}" == POD)
        for kind in ("net", "mnt", "uts", "ipc", "pid"):
            seen = cluster.exec(POD, "readlink", f"/proc/self/ns/{kind}").stdout.strip()
            assert seen == str(Path(f"/proc/{pod['pid']}/ns/{kind}").readlink())

    def test_the_cgroup_is_the_containers_as_kubelet_names_it(self, cluster: Lab) -> None:
        pod = next(pod for pod in cluster.status()["pods"] if f"{pod['namespace']}/{pod['name']}" == POD)
        if pod["cgroup"] is None:
            pytest.skip("needs cgroup v2; to run it: mount -t cgroup2 none /sys/fs/cgroup")
        own = cluster.exec(POD, "cat", "/proc/self/cgroup").stdout
        path = next(line.partition("::")[2] for line in own.splitlines() if line.startswith("0::"))
        assert pod["cgroup"].endswith(path)
        tail = path.split("/")[-4:]
        assert tail[:3] == ["kubepods", "besteffort", f"pod{pod['uid']}"]
        assert len(tail[3]) == 64
        assert str(pod["pid"]) in Path(pod["cgroup"], "cgroup.procs").read_text().split()

    def test_the_pods_own_files(self, cluster: Lab) -> None:
        files = {
            "/etc/hostname": "client\n",
            "/etc/resolv.conf": (
                "search default.svc.cluster.local svc.cluster.local cluster.local\n"
                "nameserver 10.96.0.10\n"
                "options ndots:5\n"
            ),
            "/var/run/secrets/kubernetes.io/serviceaccount/namespace": "default",
        }
        for path, text in files.items():
            assert cluster.exec(POD, "cat", path).stdout == text
        address = cluster.pods("default", "client")[0]["addresses"][0]
        assert f"{address}\tclient\n" in cluster.exec(POD, "cat", "/etc/hosts").stdout
        assert cluster.exec(POD, "hostname").stdout == "client\n"
        assert cluster.exec(POD, "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]

    def test_what_a_pod_writes_into_its_etc_stays_there(self, cluster: Lab) -> None:
        cluster.exec(POD, "sh", "-c", "echo x > /etc/k8snet-test && echo x > /run/k8snet-test")
        for path in ("/etc/k8snet-test", "/run/k8snet-test"):
            assert not Path(path).exists()
            assert cluster.exec("node1", "test", "-e", path, check=False).returncode == 1
            assert cluster.exec(POD, "cat", path).stdout == "x\n"

    def test_a_node_has_its_own_name_and_sees_its_pods_namespaces(self, cluster: Lab) -> None:
        assert cluster.exec("node2", "hostname").stdout == "node2\n"
        named = cluster.exec("node2", "ls", "/run/netns").stdout.split()
        own = [pod for pod in cluster.status()["pods"] if pod["node"] == "node2" and not pod["host_network"]]
        assert sorted(named) == sorted(f"cni-{pod['uid']}" for pod in own)

    def test_orphans_of_a_command_are_reaped(self, cluster: Lab) -> None:
        cluster.exec(POD, "sh", "-c", "(sleep 0.1 &)")
        time.sleep(0.5)
        assert "Z" not in cluster.exec(POD, "ps", "-eo", "state").stdout


class TestTargets:
    @pytest.mark.parametrize("target", ["node9", "default/nobody"])
    def test_an_unknown_one_lists_what_there_is(self, cluster: Lab, target: str) -> None:
        done = cluster.exec(target, "true", check=False)
        assert done.returncode == 2
        assert f"no {'pod' if '/' in target else 'node'} {target}" in done.stderr
        assert "default/client" in done.stderr

    def test_without_a_cluster(self) -> None:
        done = lab("exec", "--name", "no-such-cluster", POD, "--", "true", check=False)
        assert (done.returncode, "hint: k8snet-lab up --name no-such-cluster" in done.stderr) == (3, True)


class TestTerminal:
    """A pseudo-terminal, with k8snet-lab as its foreground process."""

    def start(self, cluster: Lab, *command: str) -> tuple[int, int]:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(REPOSITORY)
            arguments = [sys.executable, "-m", "labs.cli", *command]
            os.execv(sys.executable, arguments)
        return pid, terminal

    def read_until(self, terminal: int, text: str) -> str:
        got = ""
        deadline = time.monotonic() + 20
        while text not in got:
            assert time.monotonic() < deadline, got
            try:
                got += os.read(terminal, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"the terminal was closed after {got!r}")
        return got

    def test_a_shell_with_job_control(self, cluster: Lab) -> None:
        pid, terminal = self.start(cluster, "shell", "--name", cluster.name, POD)
        try:
            os.write(terminal, b"PS1=; tty; echo name $(hostname)\n")
            got = self.read_until(terminal, "name client\r\n")
            assert "no job control" not in got
            os.write(terminal, b"sleep 100\n")
            time.sleep(0.3)
            os.write(terminal, b"\x03")  # ends sleep, not the shell
            os.write(terminal, b"echo status $?\n")
            self.read_until(terminal, "status 130\r\n")
            os.write(terminal, b"exit 5\n")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        finally:
            os.close(terminal)

    def test_ctrl_c_ends_a_command(self, cluster: Lab) -> None:
        pid, terminal = self.start(
            cluster, "exec", "--name", cluster.name, POD, "--", "sh", "-c", "echo here; sleep 100"
        )
        try:
            self.read_until(terminal, "here")
            os.write(terminal, b"\x03")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
        finally:
            os.close(terminal)
