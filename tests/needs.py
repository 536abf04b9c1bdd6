"""What tests need of the machine, each found out by trying it, and where the run stands: laptop, CI, guest.

What belongs here: the answer to "can this test run here, and if not, how is that mended?". What does not: fixtures
(conftest.py). A missing need skips a test on a laptop, with the reason; with CI=true it fails the test, so that
nothing goes untested unseen.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from dataclasses import dataclass

BACKENDS = ("fentry", "kprobe", "tracepoint", "conntrack")
_BPF_MAP_TYPE_ARRAY = 2
# Files and directories whose tests measure time, or compare the machine before and after: scripts/test runs nothing
# beside them.
ALONE = (
    "cli/test_rules_speed.py",
    "cli/test_services_watch.py",
    "cli/test_trace_live.py",
    "cli/test_trace_terminal.py",
    "kernel",
    "labs/bench/test_bench_live.py",
    "labs/cluster/test_bad_days.py",
    "labs/cluster/test_ebpf_datapath.py",
    "labs/cluster/test_lifecycle.py",
    "labs/cluster/test_machine.py",
    "labs/cluster/test_many_services.py",
    "labs/cluster/test_recovery.py",
    "labs/cluster/test_supervisor_death.py",
    "tracer/source",
    "whole",
)


@dataclass(frozen=True)
class Missing:
    """What a test needs and this machine lacks: the reason, and the command that mends it."""

    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.reason}; to run it: {self.fix}"


def in_ci() -> bool:
    """True where a missing need must fail: CI=true, as every CI service sets it and .ci/run does."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def in_guest() -> bool:
    """True inside a virtual machine of scripts/vmtest."""
    return os.environ.get("K8SNET_GUEST") == "1"


def slowness() -> float:
    """By how much time limits of tests grow here (1 on a real machine, more in an emulated guest): K8SNET_SLOW."""
    return float(os.environ.get("K8SNET_SLOW", "1"))


def required_backends() -> frozenset[str]:
    """The backends whose absence is a failure: K8SNET_REQUIRE_BACKENDS=a,b; in CI tracepoint and conntrack."""
    default = "tracepoint,conntrack" if in_ci() else ""
    names = os.environ.get("K8SNET_REQUIRE_BACKENDS", default)
    return frozenset(name for name in names.split(",") if name)


def chosen_backends() -> frozenset[str]:
    """The backends whose tests are run: all, or those of K8SNET_BACKENDS=a,b."""
    names = os.environ.get("K8SNET_BACKENDS")
    return frozenset(BACKENDS if names is None else names.split(","))


def root() -> Missing | None:
    """None when this process is root."""
    if os.geteuid() == 0:
        return None
    return Missing("needs root (namespaces, conntrack, BPF)", "sudo scripts/test")


@functools.cache
def bpf() -> Missing | None:
    """None when BPF maps can be created here and bcc is installed for this interpreter."""
    if (missing := root()) is not None:
        return missing
    if importlib.util.find_spec("bcc") is None:
        return Missing("needs the Python module bcc", "scripts/setup")
    try:
        libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        return Missing(f"needs libbpf ({error})", "scripts/setup")
    fd = libbpf.bpf_map_create(_BPF_MAP_TYPE_ARRAY, b"k8snet_needs", 4, 4, 1, None)
    if fd < 0:
        reason = f"the kernel refuses a BPF map ({os.strerror(ctypes.get_errno())})"
        return Missing(reason, "run it on a machine, or in a container (--privileged), that allows BPF")
    os.close(fd)
    return None


def vm() -> Missing | None:
    """None inside a guest of scripts/vmtest."""
    return None if in_guest() else Missing("runs in the guests of scripts/vmtest", "scripts/vmtest")
