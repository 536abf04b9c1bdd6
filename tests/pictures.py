"""The pictures of README.md: the commands, run in a terminal of 120 columns, and what is on its screen as SVG.

What belongs here: what is shown. What does not: drawing (rich does it), the commands.
"""

from __future__ import annotations

import io
import os
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.cli.command import Terminal
from tests.labs.lab import Lab, lab
from tracer import netns

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS = 120
CALLS = (
    ("default/client", "http://lets-ship-it.fastapi:8000/"),
    ("default/client", "http://lets-ship-it.fastapi:8000/"),
    ("node2", "http://10.96.100.50:8000/"),
    ("default/client", "http://10.96.20.5/"),  # shop/nobody has no endpoints
    ("default/client", "http://10.244.0.1:9999/"),
)


def draw(name: str, title: str, screen: str) -> None:
    """Write what is on a terminal's screen, colours included, to docs/pictures."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen.replace("\r", "").rstrip()))
    PICTURES.mkdir(exist_ok=True)
    console.save_svg(str(PICTURES / name), title=title, unique_id="k8snet")


def trace(cluster: Lab) -> str:
    """The screen of a live trace while pods and a node call Services."""
    ready = PICTURES / "ready"
    arguments = ["--kubeconfig", cluster.kubeconfig(), "--ready-file", str(ready), "--comm", "curl"]
    with Terminal(*arguments, columns=COLUMNS) as terminal:
        while not ready.exists():
            time.sleep(0.05)
        for target, url in CALLS:
            cluster.exec(target, "curl", "-s", "-o", "/dev/null", "-m", "3", url, check=False)
            terminal.read(0.3)
        terminal.process.terminate()
        terminal.finish()
        ready.unlink()
        return terminal.screen.decode()


def status(cluster: Lab) -> str:
    """What `k8snet-lab status` draws."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    drawn: subprocess.CompletedProcess[str] = lab("status", "--name", cluster.name, env=environment)
    return drawn.stdout.replace(cluster.name, "k8snet")


def explanation(cluster: Lab) -> str:
    """The screen of explain, asked on a node about a pod's call of a Service."""
    init = cluster.exec("node1", "sh", "-c", "readlink /proc/self/ns/net").stdout.strip()
    inode = int(init.partition("[")[2].rstrip("]"))
    path = netns.every()[inode]
    source = cluster.exec("default/client", "hostname", "-i").stdout.strip()
    arguments = ("explain", "fastapi/lets-ship-it:http", "--netns", path, "--source", source)
    with Terminal(*arguments, columns=COLUMNS) as terminal:
        terminal.finish()
        return terminal.screen.decode()


def main() -> None:
    """Make all the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with Lab(("-f", str(Path(__file__).parent / "labs" / "shop.yaml"))) as cluster:
        draw("trace.svg", "sudo k8snet-trace --comm curl", trace(cluster))
    with Lab() as cluster:
        draw("map.svg", "sudo k8snet-lab status", status(cluster))
        draw("explain.svg", "sudo k8snet-trace explain fastapi/lets-ship-it:http --source …", explanation(cluster))


if __name__ == "__main__":
    main()
