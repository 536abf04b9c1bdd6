"""Files that change all at once, as their readers see them: through the symbolic link `..data`.

Stands for pkg/volume/util/atomic_writer.go, and leaves the same names:

    colour -> ..data/colour
    ..data -> ..2026_11_28_19_00_00.1234567890
    ..2026_11_28_19_00_00.1234567890/colour
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from labs.cluster.volumecontents import File

DATA = "..data"


def write(directory: Path, files: Mapping[str, File]) -> bool:
    """Have `directory` hold exactly these files, by relative path. False when it did already. Raises OSError."""
    link = directory / DATA
    old = directory / link.readlink() if link.is_symlink() else None
    if old is not None and _holds(old, files):
        return False
    new = directory / f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime())}.{secrets.randbelow(1 << 32)}"
    new.mkdir(mode=0o755)
    for name, file in files.items():
        path = new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
    draft = directory / f"{DATA}_tmp"
    draft.symlink_to(new.name)
    draft.rename(link)
    wanted = {name.partition("/")[0] for name in files}
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    for name in wanted:
        if not os.path.lexists(directory / name):
            (directory / name).symlink_to(f"{DATA}/{name}")
    if old is not None:
        shutil.rmtree(old)
    return True


def _holds(directory: Path, files: Mapping[str, File]) -> bool:
    there = {str(path.relative_to(directory)): path for path in directory.rglob("*") if not path.is_dir()}
    return there.keys() == files.keys() and all(
        path.read_bytes() == files[name].data and path.stat().st_mode & 0o7777 == files[name].mode
        for name, path in there.items()
    )
