"""The shell that a lesson's scripts and console blocks run in, as a learner has it.

What belongs here: its environment. What does not: which lesson, which cluster (`labs.engine.session`), and what is run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Our own environment, the commands of this very installation in its PATH, and `more`.

    The commands go with it: what a script leaves in the background must have begun when the script ends.
    """
    with TemporaryDirectory(prefix="k8snet-lab-") as directory:
        for name, module in (("k8snet-lab", "labs.cli"), ("k8snet-trace", "tracer")):
            _write_program(Path(directory, name), f'exec {shlex.quote(sys.executable)} -m {module} "$@"')
        if shutil.which("sudo") is None:
            _write_program(Path(directory, "sudo"), 'exec "$@"')
        yield {
            **os.environ,
            "PATH": f"{directory}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": ":".join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))),
            **more,
        }


def _write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
