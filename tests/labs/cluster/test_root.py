"""Root file systems of nodes and pods: what is written in one is seen nowhere else, least of all on the machine."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labs.lab import REPOSITORY, Lab, lab

pytestmark = pytest.mark.root

PLACES = ("/", "/tmp", "/usr/local/bin", "/var/lib", "/root", "/etc", "/dev", "/dev/shm", "/run")
TARGETS = ("node1", "node2", "client-host", "default/client")


def test_what_is_written_is_seen_in_one_place_only(cluster: Lab) -> None:
    word = secrets.token_hex(8)
    for target in TARGETS:
        name = f"{word}-{target.replace('/', '-')}"
        cluster.exec(target, "sh", "-ec", f'for d in {" ".join(PLACES)}; do echo mine >"$d/{name}"; done')
    for target in TARGETS:
        found = cluster.exec(
            target, "sh", "-c", f"ls -d {' '.join(f'{place}/{word}-*' for place in PLACES)}", check=False
        )
        name = f"{word}-{target.replace('/', '-')}"
        assert found.stdout.split() == sorted(f"{place}/{name}" for place in PLACES)
    assert [path for place in PLACES for path in Path(place).glob(f"{word}-*")] == []


def test_what_is_removed_is_still_there_elsewhere(cluster: Lab) -> None:
    cluster.exec("default/client", "rm", "/usr/bin/factor", "/dev/full")
    assert cluster.exec("default/client", "test", "-e", "/usr/bin/factor", check=False).returncode == 1
    for path in ("/usr/bin/factor", "/dev/full"):
        cluster.exec("node1", "test", "-e", path)
        assert Path(path).exists()


def test_a_terminal_is_one_inside_too(cluster: Lab) -> None:
    """The device in /dev/pts is the caller's, while /dev is the container's own."""
    program = f"import pty; pty.spawn(['{sys.executable}', '-m', 'labs.cli', 'exec', '--name', '{cluster.name}', "
    done = subprocess.run(
        [sys.executable, "-c", f"{program} 'default/client', '--', 'tty'])"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.startswith("/dev/pts/")


# Two overlays, one over the other, are as many as the kernel stacks: a machine that is a container in a container.
STACKED = """
set -e
stack=$1; shift
mount -t tmpfs k8snet-test "$stack"
cd "$stack"
mkdir one two upper1 work1 upper2 work2
mount -t overlay k8snet-test -o lowerdir=/,upperdir=upper1,workdir=work1 one
mount -t overlay k8snet-test -o lowerdir=one,upperdir=upper2,workdir=work2 two
for part in proc sys dev run; do mount --rbind "/$part" "two/$part"; done
mkdir two/old
pivot_root two two/old
cd /
exec "$@"
"""


def test_where_no_overlay_is_possible_the_files_are_shared_read_only(tmp_path: Path) -> None:
    name = f"test-{secrets.token_hex(4)}"
    own = subprocess.run(["iptables", "-V"], capture_output=True, text=True, check=True).stdout
    other, words = ("nft", "nf_tables") if "legacy" in own else ("legacy", "legacy")

    def inside(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", STACKED, "sh", str(tmp_path)]
        done = subprocess.run(
            [*enter, "sh", "-c", f'cd {REPOSITORY} && exec "$@"', "sh", sys.executable, "-m", "labs.cli", *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    try:
        up = inside("up", "--name", name, "--iptables", other)
        assert "note: nodes and pods share the machine's files read-only: no overlay over its root: " in up.stderr
        for target in ("node1", "default/client"):
            refused = lab("exec", "--name", name, target, "--", "touch", "/usr/x", check=False)
            assert refused.stderr == "touch: cannot touch '/usr/x': Read-only file system\n"
        hosts = lab("exec", "--name", name, "default/client", "--", "cat", "/etc/hostname", "/etc/passwd").stdout
        assert hosts.startswith("client\nroot:")
        answer = ("curl", "-sS", "--max-time", "5", "http://lets-ship-it.fastapi:8000/")
        assert '"pod"' in lab("exec", "--name", name, "default/client", "--", *answer).stdout
        config = lab("exec", "--name", name, "node1", "--", "cat", "/etc/kubernetes/admin.conf").stdout
        assert "certificate-authority-data" in config
        assert f"({words})" in lab("exec", "--name", name, "node1", "--", "iptables", "-V").stdout
    finally:
        lab("down", "--name", name)
