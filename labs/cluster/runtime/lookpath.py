"""Which file a command's first word means, in a container's root file system.

Stands for Go's os/exec, LookPath, as runc uses it.
"""

from __future__ import annotations

import json
from pathlib import Path

from tracer.errors import K8snetError


def find_program(name: str, path: str) -> str:
    """The file to run for a word, along `path` (Go's os/exec, LookPath). Raises K8snetError in Go's words."""
    word = json.dumps(name, ensure_ascii=False)
    if "/" in name:
        try:
            if Path(name).is_dir():
                raise K8snetError(f"exec: {word}: is a directory")
            if not Path(name).stat().st_mode & 0o111:
                raise K8snetError(f"exec: {word}: permission denied")
        except OSError as error:
            raise K8snetError(f"exec: {word}: stat {name}: {(error.strerror or '').lower()}") from error
        return name
    for directory in path.split(":"):
        found = Path(directory or ".", name)
        if name and found.is_file() and found.stat().st_mode & 0o111:
            return str(found)
    raise K8snetError(f"exec: {word}: executable file not found in $PATH")
