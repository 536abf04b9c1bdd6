"""The image of a pod that one works from: it waits, and leaves shell, curl and dig to `k8snet-lab exec`."""

from __future__ import annotations

import signal

from labs.cluster.runtime.container import Container
from labs.cluster.serving import leave_no_zombies


def main(container: Container) -> None:
    """Wait until told to stop; the shells that end here are reaped by the kernel."""
    leave_no_zombies()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    container.ready()
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
