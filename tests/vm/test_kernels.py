"""Which kernel packages are chosen and how they are unpacked; apt itself is played by two small scripts."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.vm import kernels

OFFERED = {
    "linux-image-6.1.0-9-amd64": "6.1.27-1",
    "linux-image-6.1.0-56-amd64": "6.1.192-2",
    "linux-image-6.1.0-57-amd64": "(none)",
    "linux-image-6.1.0-56-rt-amd64": "6.1.192-2",
    "linux-image-6.12.117+deb12-amd64": "6.12.117-1~deb12u1",
    "linux-image-6.12.9+deb12-amd64": "6.12.9-1~bpo12+1",
}


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-cache and an apt-get that know OFFERED; apt-get download makes a real, tiny package. Returns its log."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    log.touch()
    policies = "".join(f"{name}) echo '{name}:'; echo '  Candidate: {v}';;\n" for name, v in OFFERED.items())
    script(
        tools / "apt-cache",
        f'case "$1" in pkgnames) echo {" ".join(OFFERED)};; policy) case "$2" in {policies} esac;; esac',
    )
    script(
        tools / "apt-get",
        f"""
        echo "$@" >>{log}
        for argument; do case "$argument" in *=6*) package=$argument;; esac; done
        [ -n "$package" ] || exit 0
        name=${{package%%=*}} release=${{name#linux-image-}}
        mkdir -p deb/DEBIAN deb/boot deb/lib/modules/$release
        printf '%s: x\\n' Package Maintainer Description >deb/DEBIAN/control
        printf 'Version: 1\\nArchitecture: all\\n' >>deb/DEBIAN/control
        echo image >deb/boot/vmlinuz-$release
        dpkg-deb -b deb x.deb >/dev/null && rm -r deb
        """,
    )
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return log


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("series", "release"), [("6.1", "6.1.0-56-amd64"), ("6.12", "6.12.117+deb12-amd64")])
def test_newest_of_a_series_by_version_not_by_name(apt: Path, tmp_path: Path, series: str, release: str) -> None:
    newest = kernels.newest_offered(series, tmp_path)
    assert newest is not None
    assert newest.release == release


def test_unpacked_once_and_older_ones_removed(apt: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    older = kernels.Kernel("linux-image-6.1.0-9-amd64", "6.1.27-1", cache)
    older.image.parent.mkdir(parents=True)
    older.image.touch()
    first = kernels.get("6.1", cache)
    assert first.image.read_text() == "image\n"
    assert (first.root / "lib/modules" / first.release / "modules.dep").exists()
    assert not older.root.exists()
    assert kernels.get("6.1", cache) == first
    assert apt.read_text().count("download") == 1


def test_without_an_offer_the_newest_unpacked_one_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "newest_offered", lambda series, cache: None)
    for version, abi in (("6.1.99-1", 20), ("6.1.100-1", 3)):
        kernel = kernels.Kernel(f"linux-image-6.1.0-{abi}-amd64", version, tmp_path)
        kernel.image.parent.mkdir(parents=True)
        kernel.image.touch()
    assert kernels.get("6.1", tmp_path).version == "6.1.100-1"


def test_no_offer_and_nothing_unpacked_says_what_to_look_at(
    tmp_path: Path, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "newest_offered", lambda series, cache: None)
    with pytest.raises(kernels.KernelError, match="apt-cache search linux-image"):
        kernels.get("6.12", tmp_path)
    assert "update" in apt.read_text()


def test_versions_compare_as_dpkg_compares_them() -> None:
    ordered = ["6.12.9-1~bpo12+1", "6.12.9-1", "6.12.117-1~deb12u1"]
    for older, newer in itertools.combinations(ordered, 2):
        assert kernels.compare_versions(older, newer) < 0 < kernels.compare_versions(newer, older)
    assert kernels.compare_versions("6.1", "6.1") == 0


def test_failed_download_says_what_apt_said(tmp_path: Path, apt: Path) -> None:
    script(tmp_path / "bin" / "apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(kernels.KernelError, match="no network"):
        kernels.get("6.12", tmp_path / "cache")


def test_an_interrupted_unpacking_does_not_count(tmp_path: Path, apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        kernels.get("6.12", cache)
    assert list(cache.rglob("vmlinuz-*"))
    assert kernels.cached(cache) == []
    assert kernels.get("6.12", cache).image.exists()
