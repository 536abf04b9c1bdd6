"""`python -m tests.vm`: run the kernel tests here and in guests, and print the matrix. scripts/vmtest calls it."""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.needs import BACKENDS
from tests.vm import guest, kernels, matrix

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "vm"
SLOW_EMULATED = 10
DEFAULT_TESTS = ["tests/kernel", "tests/tracer/source/test_conntrack.py", "tests/vm/test_inside.py"]
# With --quick: each backend on one kernel; tracepoint, which needs least, on this machine's.
QUICK = {"6.1": ("kprobe", "conntrack"), "6.12": ("fentry", "conntrack")}
# What every machine must offer on which CI runs; the guests' kernels offer everything.
REQUIRED_HERE = ("tracepoint", "conntrack")


def main() -> int:
    """Exit code: 0 when every test passed on every kernel and no backend was missing that must be there, else 1."""
    # A plain SIGTERM would leave the guest running: leave through the `finally` that ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("error: scripts/vmtest is running in this checkout already", file=sys.stderr)
            return 3
        rows, shortfall = _run(options)
    print(f"\n{matrix.table(rows)}\n")
    for line in shortfall:
        print(f"vmtest: {line}")
    print(f"vmtest: {'FAILED' if shortfall else 'passed'} on {len(rows)} kernels")
    return 1 if shortfall else 0


def _run(options: argparse.Namespace) -> tuple[list[matrix.Row], list[str]]:
    """All rows, and what falls short in them. The guests run side by side: an emulated one keeps one CPU busy."""
    rows: list[matrix.Row] = []
    shortfall: list[str] = []
    if not options.guests_only:
        rows.append(_here(options.tests, options.here))
        shortfall += rows[0].shortfall(REQUIRED_HERE)
    running: list[guest.Guest] = []
    with ThreadPoolExecutor() as pool:
        try:
            found = list(pool.map(lambda series: _guest(series, options, running), options.kernel or kernels.SERIES))
        except BaseException:
            for one in running:
                one.end("interrupted")
            raise
    for series, row in zip(options.kernel or kernels.SERIES, found, strict=True):
        shortfall += row.shortfall(_backends(series, options))
    return rows + found, shortfall


def _backends(series: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The backends that are tested on a kernel."""
    return QUICK[series] if options.quick else BACKENDS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/vmtest", description="Run tests/kernel on this kernel and on Debian's, in guests."
    )
    parser.add_argument("--kernel", action="append", choices=list(kernels.SERIES), help="only this series (repeatable)")
    parser.add_argument("--guests-only", action="store_true", help="leave this machine's own kernel out")
    parser.add_argument(
        "--here",
        type=Path,
        metavar="REPORT",
        help="what `scripts/test --junitxml=REPORT` wrote: not run here once more",
    )
    parser.add_argument(
        "--quick", action="store_true", help="in guests, each backend on one kernel only: half the time"
    )
    parser.add_argument("--kvm", action="store_true", help="hardware virtualisation: ten times as fast, where it works")
    parser.add_argument(
        "--limit", type=float, default=4200, help="seconds until a guest is ended (default %(default)s)"
    )
    parser.add_argument(
        "tests",
        nargs="*",
        default=DEFAULT_TESTS,
        help=f"what pytest runs (default: {' '.join(DEFAULT_TESTS)})",
    )
    return parser.parse_args()


def _here(tests: list[str], known: Path | None) -> matrix.Row:
    """The tests on this machine's own kernel; `known`: a report of them that there is already."""
    row = matrix.Row(f"{platform.release()} (this machine)")
    print(f"vmtest: {row.kernel}", flush=True)
    if known is not None:
        if known.exists():
            row.add_report(known, tests)
        else:
            row.error = f"there is no report {known}"
        return row
    report = CACHE / "results" / "here" / "junit.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *tests]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, "CI": "true"}, check=False)
    if report.exists():
        row.add_report(report)
    else:
        row.error = "pytest wrote no report"
    return row


def _guest(series: str, options: argparse.Namespace, running: list[guest.Guest]) -> matrix.Row:
    """The tests in a guest that runs the newest kernel of a series; the guest is added to `running`."""
    row = matrix.Row(series)
    try:
        kernel = kernels.get(series, CACHE)
        row.kernel = kernel.release
        print(f"vmtest: {kernel.release}, in a guest", flush=True)
        results = CACHE / "results" / kernel.release
        slow = 1 if options.kvm else SLOW_EMULATED
        backends = _backends(series, options)
        one = guest.Guest(kernel, PROJECT, results, slow=slow, kvm=options.kvm, backends=backends)
        running.append(one)
        row.add_report(one.run(options.tests, limit=options.limit))
    except (kernels.KernelError, guest.GuestError) as error:
        row.error = str(error)
    return row


if __name__ == "__main__":
    sys.exit(main())
