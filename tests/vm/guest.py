"""One virtual machine: boots a kernel on this machine's own files (virtme-ng), runs tests in it, brings results back.

What belongs here: the command line of the guest, its time limit, how results come out. What does not: which kernels
(kernels.py), what happens inside (inside.sh), what the results mean (matrix.py).

The guest sees the host's root directory, read-only; what it writes goes to a tmpfs of its own. Two more shares are
ours: `k8snet-root`, the same root again but cached (virtme's own share fetches libLLVM anew for each import of bcc:
5.5 s against 1.1 s), and `k8snet-results`, the one directory that the guest can write to.
virtme-ng passes the exit code on only where udev is installed, so the guest writes it into a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.needs import BACKENDS
from tests.vm.kernels import Kernel

MEMORY = "2G"
# All passed; some failed.
_PYTEST_RAN = ("0", "1")
# What the kernel prints before it has read `quiet` on its command line, and its last word.
_BOOT_CONSOLE = re.compile(r"\[    0\.0|\w+ KASLR using|\[ *[0-9.]+\] reboot: Power down")


class GuestError(Exception):
    """The guest did not come up, or did not live to tell: the message says which and where its console went."""


class Guest:
    """A guest that is to run pytest under `kernel`, in the checkout `project`.

    `results`: the directory that receives junit.xml, exit-code and console.log; nothing else may use it meanwhile.
    `slow`: what tests multiply their time limits with. `kvm`: hardware virtualisation instead of emulation.
    `backends`: whose tests are run there, and must be there.
    """

    def __init__(
        self,
        kernel: Kernel,
        project: Path,
        results: Path,
        *,
        slow: int,
        kvm: bool,
        backends: Sequence[str] = BACKENDS,
    ) -> None:
        self._kernel, self._project, self._results = kernel, project, results
        self._slow, self._kvm, self._backends = slow, kvm, backends
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: str | None = None

    def run(self, pytest_args: list[str], *, limit: float) -> Path:
        """Boot, run pytest inside, stream the console to our stdout; returns the JUnit report.

        `limit`: seconds until the guest is ended. Raises GuestError when pytest did not come to its end.
        """
        self._results.mkdir(parents=True, exist_ok=True)
        report, code, console = (self._results / name for name in ("junit.xml", "exit-code", "console.log"))
        report.unlink(missing_ok=True)
        code.unlink(missing_ok=True)
        timer = threading.Timer(limit, self.end, [f"the guest did not end within {limit:.0f} s"])
        timer.start()
        try:
            self._stream(self._command(pytest_args), console)
        finally:
            timer.cancel()
            self._kill()
        if self._ended is not None or not code.exists():
            raise GuestError(f"{self._ended or 'the guest ended without a result'}; its console: {console}")
        if code.read_text().strip() not in _PYTEST_RAN:
            raise GuestError(f"pytest left with exit code {code.read_text().strip()}; its output: {console}")
        return report

    def end(self, why: str) -> None:
        """End the guest, from whatever thread; `run` then raises GuestError with these words."""
        self._ended = why
        self._kill()

    def _command(self, pytest_args: list[str]) -> list[str]:
        environment = {
            "CI": "true",
            "K8SNET_GUEST": "1",
            "K8SNET_SLOW": str(self._slow),
            "K8SNET_BACKENDS": ",".join(self._backends),
            "K8SNET_REQUIRE_BACKENDS": ",".join(self._backends),
            "K8SNET_MODULES": f"/run/k8snet-root{self._kernel.root}/lib/modules",
        }
        inside = ["env", *(f"{name}={value}" for name, value in environment.items()), "bash"]
        inside += [f"/run/k8snet-root{self._project}/tests/vm/inside.sh", str(self._project), *pytest_args]
        mount = "mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000"
        first = f"mkdir -p /run/k8snet-root && {mount} k8snet-root /run/k8snet-root && exec {shlex.join(inside)}"
        command = [
            str(self._project / ".venv/bin/vng"),
            "--run",
            str(self._kernel.image),
            "--exec",
            first,
            "--cwd",
            "/",
        ]
        # Messages of the kernel only when it is in trouble; --verbose is what connects the console at all.
        command += ["--verbose", "--append=quiet", "--append=loglevel=1"]
        # An emulated machine waits long for grace periods, of which every network namespace takes some, and has nothing
        # to protect from anybody.
        command += ["--append=rcupdate.rcu_expedited=1", "--append=mitigations=off"]
        command += ["--force-9p", "--disable-microvm", "--memory", MEMORY, "--cpus", "2"]
        command += [] if self._kvm else ["--disable-kvm"]
        shares = (_share("k8snet-root", Path("/"), "on"), _share("k8snet-results", self._results, "off"))
        return [*command, f"--qemu-opts={' '.join(shares)}"]

    def _stream(self, command: list[str], console: Path) -> None:
        """Start the guest and copy its console to our stdout and to a file until it ends."""
        # vng calls virtme-run by name: it lives beside it.
        path = f"{self._project}/.venv/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": path},
        )
        assert self._process.stdout is not None
        with console.open("wb", buffering=0) as copy, self._process.stdout as output:
            for line in output:
                copy.write(line)
                text = line.decode(errors="replace").rstrip("\r\n")
                if not _BOOT_CONSOLE.match(text):
                    print(f"{self._kernel.release} | {text}", flush=True)

    def _kill(self) -> None:
        """End vng, its shells and qemu: the process group that we started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _share(tag: str, path: Path, readonly: str) -> str:
    return (
        f"-fsdev local,id={tag},path={path},security_model=none,multidevs=remap,readonly={readonly} "
        f"-device virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    )
