"""What machine it is that was measured on: figures mean nothing without.

What belongs here: reading /proc and asking programs for their versions. What does not: whether BPF works
(`tracer.doctor`).
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracer import __version__

VERSIONS = {"iptables": ("iptables", "--version"), "nft": ("nft", "--version")}


def describe() -> dict[str, Any]:
    """The machine, its kernel, and how busy it is now, as the results tell it. What can't be found is None."""
    load = os.getloadavg()
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": _megabytes(_field("/proc/meminfo", "MemTotal")),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "system": _system(),
        "hypervisor": "hypervisor" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "spectre_v2": _read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        "bpf_jit": _read("/proc/sys/net/core/bpf_jit_enable"),
        **{name: _version(command) for name, command in VERSIONS.items()},
        "k8snet": __version__,
        "load_average": [round(one, 2) for one in load],
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def words(machine: dict[str, Any]) -> str:
    """One line for people."""
    virtual = ", virtual" if machine.get("hypervisor") else ""
    load = machine.get("load_average") or [None]
    return (
        f"{machine.get('cpus')} processors ({machine.get('cpu')}{virtual}), Linux {machine.get('kernel')}, "
        f"load {load[0]} at the start"
    )


def _field(path: str, name: str) -> str | None:
    """The first value of `name` in a file of lines "name: value"."""
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _megabytes(kilobytes: str | None) -> int | None:
    return None if kilobytes is None else int(kilobytes.split()[0]) // 1024


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _version(command: tuple[str, ...]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
