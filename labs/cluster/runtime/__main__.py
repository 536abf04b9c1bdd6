"""A runtime as a program of its own: `python -m labs.cluster.runtime NAME FD`, where FD is the socket to its client.

Only a runtime that takes the place of another one is started so (see `labs.cluster.runtime.service.start_again`).
"""

from __future__ import annotations

import sys

from labs.cluster import images
from labs.cluster.runtime.service import be_runtime


def main() -> None:
    """Load what containers run, then serve."""
    name, fd = sys.argv[1:]
    images.preload()
    be_runtime(name, int(fd))


if __name__ == "__main__":
    main()
