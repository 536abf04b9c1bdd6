"""A guest of scripts/vmtest is what the kernel tests take it for: a node, with its file systems, modules and tools."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/sys/kernel/tracing", "tracefs"),
        ("/sys/fs/bpf", "bpf"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/run/k8snet-root", "9p"),
    ],
)
def test_mounts(path: str, kind: str) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [mount[2] for mount in mounts if mount[1] == path][-1:] == [kind]


def test_modules_of_a_node_are_loaded_and_more_can_be() -> None:
    assert Path("/sys/module/nf_conntrack").exists()
    assert Path("/sys/module/nf_nat").exists()
    subprocess.run(["modprobe", "ipip"], check=True)
    assert Path("/sys/module/ipip").exists()


def test_runs_the_kernel_whose_modules_it_has() -> None:
    assert (Path("/lib/modules") / platform.release() / "modules.dep").exists()


def test_btf_and_kprobes_are_there() -> None:
    assert Path("/sys/kernel/btf/vmlinux").exists()
    assert Path("/sys/kernel/btf/nf_conntrack").exists()
    assert Path("/sys/kernel/tracing/kprobe_events").exists()
