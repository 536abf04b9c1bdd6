"""Debian's kernel packages, unpacked beside each other and installed nowhere.

What belongs here: which linux-image packages apt offers for a series, and one directory for each with its image and
modules. What does not: booting them (guest.py), what runs inside (inside.sh).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Debian's own names: 6.1.0-NN is bookworm's kernel (its ABI number), 6.12.N+deb12 the newer one built for bookworm
# (from bookworm-backports, later from bookworm-security).
SERIES = {
    "6.1": r"linux-image-6\.1\.0-\d+-amd64",
    "6.12": r"linux-image-6\.12\.\d+\+deb12-amd64",
}


class KernelError(Exception):
    """A kernel can't be had; the message says why and what would mend it."""


@dataclass(frozen=True)
class Kernel:
    """One linux-image package of one version, unpacked below `cache` or still to be."""

    package: str
    version: str
    cache: Path

    @property
    def release(self) -> str:
        """What uname -r says where it runs."""
        return self.package.removeprefix("linux-image-")

    @property
    def root(self) -> Path:
        """The directory that holds its boot/ and lib/modules/."""
        return self.cache / f"{self.package}_{self.version}"

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"


def get(series: str, cache: Path) -> Kernel:
    """The newest kernel of a series that apt offers, unpacked; else the newest already unpacked. Raises KernelError."""
    try:
        return _newest_unpacked(series, cache)
    except KernelError:
        # Package lists that are missing or out of date: once more with new ones.
        subprocess.run(["apt-get", "-q", "update"], check=False, capture_output=True)
        return _newest_unpacked(series, cache)


def _newest_unpacked(series: str, cache: Path) -> Kernel:
    unpacked = [kernel for kernel in cached(cache) if re.fullmatch(SERIES[series], kernel.package)]
    offered = newest_offered(series, cache) or (unpacked[-1] if unpacked else None)
    if offered is None:
        raise KernelError(
            f"apt offers no package {SERIES[series]}; is this Debian 12 for amd64, with its security archive? "
            "apt-cache search linux-image tells what it offers"
        )
    if offered not in unpacked:
        _unpack(offered)
        for older in unpacked:
            shutil.rmtree(older.root)
    return offered


def cached(cache: Path) -> list[Kernel]:
    """The kernels unpacked in `cache`, oldest version first."""
    named = (root.name.split("_", 1) for root in cache.glob("linux-image-*_*"))
    kernels = [Kernel(package, version, cache) for package, version in named]
    return sorted((kernel for kernel in kernels if kernel.image.exists()), key=_by_version)


def newest_offered(series: str, cache: Path) -> Kernel | None:
    """The newest kernel of a series in apt's lists, or None."""
    offered = []
    for package in _run("apt-cache", "pkgnames", "linux-image-").split():
        if re.fullmatch(SERIES[series], package):
            candidate = re.search(r"^  Candidate: (\S+)", _run("apt-cache", "policy", package), re.MULTILINE)
            if candidate is not None and candidate[1] != "(none)":
                offered.append(Kernel(package, candidate[1], cache))
    return max(offered, key=_by_version, default=None)


def _unpack(kernel: Kernel) -> None:
    """Download and unpack into a directory beside the final one; the rename at the end makes it whole or absent."""
    work = kernel.root.with_name(f"partial-{kernel.root.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    package = f"{kernel.package}={kernel.version}"
    try:
        # apt would download as its own user, which can't write below somebody's home directory.
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
    except subprocess.CalledProcessError as error:
        raise KernelError(f"apt-get download {package} failed: {error.stderr.strip()}") from error
    for deb in work.glob("*.deb"):
        _run("dpkg", "-x", str(deb), str(work))
        deb.unlink()
    _run("/sbin/depmod", "-b", str(work), kernel.release)
    work.rename(kernel.root)


def compare_versions(a: str, b: str) -> int:
    """Negative, 0 or positive as version `a` is older than, equal to or newer than `b`, by dpkg's own rules."""
    if subprocess.run(["dpkg", "--compare-versions", a, "lt", b], check=False).returncode == 0:
        return -1
    return subprocess.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0


_version_key = functools.cmp_to_key(compare_versions)


def _by_version(kernel: Kernel) -> Any:
    return _version_key(kernel.version)


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout
