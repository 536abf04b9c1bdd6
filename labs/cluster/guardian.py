"""The process that outlives a cluster's supervisor to remove the little that the kernel does not.

    k8snet-lab up ── starts ──▶ guardian ── forks ──▶ supervisor (PID 1 of a pid namespace; all else is in it)

Killing the supervisor ends every process of the cluster, and with them its namespaces, links and rules; the guardian
waits for that and then removes cgroups and state directory. When the guardian is killed instead, the supervisor does
the same for itself (see `labs.cluster.supervisor`). It stands for nothing in Kubernetes.

Run as `python -m labs.cluster.guardian`, with the options on standard input and the file descriptors that
`labs.cluster.control` passes. It starts in the machine's own namespaces, and it alone stays there; the API server's
loopback socket is opened here for that reason.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from labs.cluster import linux
from labs.cluster.ledger import CGROUP_PREFIX, Ledger, find_cgroup_root, process_identity
from labs.cluster.options import ClusterOptions


def main() -> None:
    """The guardian's whole life; what it has to say goes to the descriptor --report (see `labs.cluster.control`)."""
    arguments = _arguments()
    options = ClusterOptions.from_json(sys.stdin.read())
    os.setsid()  # the terminal's Ctrl-C is not for us
    linux.set_process_name("k8snet-guardian")
    ledger = Ledger(options.name, guardian=process_identity(os.getpid()))
    # Signals must not end the guardian before it knows the supervisor, nor between its death and the clean-up.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        _record_cgroup(ledger, options.name)
        host_socket = _loopback_socket()
        supervisor = _start_supervisor(options, ledger, host_socket, arguments)
        ledger.supervisor = process_identity(supervisor)
        ledger.write()
        os.close(arguments.report)
        host_socket.close()
        _wait(supervisor)
    finally:
        ledger.remove_everything()


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="labs.cluster.guardian")
    parser.add_argument("--report", type=int, required=True, help="descriptor for progress, one JSON object per line")
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the cluster's lock, to be held")
    return parser.parse_args()


def _record_cgroup(ledger: Ledger, name: str) -> None:
    """Choose the cluster's cgroup, write it down, make it. Without cgroup v2 there is none, and a note says so."""
    root = find_cgroup_root()
    if root is not None:
        ledger.cgroup = str(root / f"{CGROUP_PREFIX}{name}-{os.urandom(4).hex()}")
    ledger.write()
    try:
        if ledger.cgroup is not None:
            Path(ledger.cgroup).mkdir()
    except OSError as error:
        ledger.notes.append(f"no cgroups: {error.strerror} at {ledger.cgroup}")
        ledger.cgroup = None
    if root is None:
        ledger.notes.append(
            "no cgroups: cgroup v2 is not mounted, or not writable; processes can't be told apart by cgroup"
        )


def _loopback_socket() -> socket.socket:
    """The socket on which the machine reaches the API server: on loopback, at a port that was free."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener


def _start_supervisor(
    options: ClusterOptions, ledger: Ledger, host_socket: socket.socket, arguments: argparse.Namespace
) -> int:
    """Fork the supervisor as PID 1 of a new pid namespace; it never returns from here. Gives its process id."""
    alive_reader, alive_writer = os.pipe2(os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        os.close(alive_reader)  # alive_writer stays open as long as the guardian lives
        return pid
    os.close(alive_writer)
    try:
        from labs.cluster import supervisor  # heavy, and not needed by the guardian

        supervisor.run(options, ledger, host_socket, alive_reader, arguments.report, arguments.lock)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _wait(supervisor: int) -> None:
    """Wait until the supervisor is gone; a signal to stop kills it first."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os.kill(supervisor, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.waitpid(supervisor, 0)
    # Anything that arrives now must not cut the clean-up short.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
    sys.exit(0)
