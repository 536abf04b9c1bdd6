"""Requests per second through Services: one connection for each request, and many requests on few connections.

The second is the control: once a connection stands, no datapath looks anything up, so it should not differ. nginx
answers in the server pod, wrk asks from the client pod, with a thread for each target. Both compete for the same
processors, so these are figures of the whole path and not of the datapath alone.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from labs.bench import objects
from labs.bench.wiring import Wiring
from tracer.errors import K8snetError, ToolMissing

CONNECTIONS_PER_TARGET = 8
READY_SECONDS = 10.0
_DIRECTORY = Path("/run")  # the worker's own
_NGINX = f"""\
daemon off;
master_process off;
pid /run/nginx.pid;
error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    server {{
        listen {objects.PORT} backlog=4096;
        location / {{ return 200 "ok"; }}
    }}
}}
"""
# wrk calls setup() once for each of its threads, before they start.
_WRK = """\
local hosts, last = {{ {hosts} }}, 0
function setup(thread)
    last = last % #hosts + 1
    thread.addr = wrk.lookup(hosts[last], "{port}")[1]
end
"""
PROGRAMS = {"wrk": "apt install wrk", "nginx": "apt install nginx-light"}


def require_programs() -> None:
    """Raise ToolMissing, with the command that mends it, unless wrk and nginx are installed."""
    for program, mend in PROGRAMS.items():
        if find(program) is None:
            raise ToolMissing(f"{program} is not installed; rates are measured with it", hint=mend)


def find(program: str) -> str | None:
    """Its path; Debian has nginx where only root looks."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


@contextlib.contextmanager
def nginx(wiring: Wiring) -> Iterator[None]:
    """A web server under every endpoint's address, for the length of the body. Raises K8snetError."""
    configuration = _DIRECTORY / "nginx.conf"
    configuration.write_text(_NGINX)
    command = [find("nginx") or "nginx", "-p", str(_DIRECTORY), "-c", str(configuration)]
    with wiring.server():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_until_ready(wiring, process)
        yield
    finally:
        process.kill()
        process.communicate()


def measure(wiring: Wiring, ips: Sequence[str], seconds: int, *, keep_alive: bool) -> float:
    """Requests per second to all of `ips` together. Raises K8snetError when one of them fails."""
    script = _DIRECTORY / "targets.lua"
    script.write_text(_WRK.format(hosts=", ".join(f'"{ip}"' for ip in ips), port=objects.PORT))
    threads = len(ips)
    command = ["wrk", f"-t{threads}", f"-c{CONNECTIONS_PER_TARGET * threads}", f"-d{seconds}s", "-s", str(script)]
    if not keep_alive:
        command += ["-H", "Connection: close"]
    with wiring.client():
        done = subprocess.run(
            [*command, f"http://{ips[0]}:{objects.PORT}/"], capture_output=True, text=True, check=False
        )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    # "Socket errors: connect 0, read 0, write 0, timeout 3": a busy machine may well be slow.
    failed = re.search(r"Socket errors: (?!connect 0, read 0, write 0).*|Non-2xx.*", done.stdout)
    if done.returncode != 0 or rate is None or failed is not None:
        raise K8snetError(f"wrk: {failed.group() if failed else done.stderr.strip() or done.stdout.strip()}")
    return float(rate.group(1))


def _wait_until_ready(wiring: Wiring, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with wiring.server():
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", objects.PORT)):
                return
            time.sleep(0.01)
    process.kill()
    _, said = process.communicate()
    raise K8snetError(f"nginx does not answer: {said.decode(errors='replace').strip()}")
