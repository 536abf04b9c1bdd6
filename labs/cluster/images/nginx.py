"""nginx, the machine's own, for tests under load: it answers every request with the name of its pod.

The answer is the JSON of `labs.cluster.images.http_echo` without "port" of the client. One worker, no access log.
Listens on the declared containerPorts, else 80.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from labs.cluster.runtime.container import Container
from labs.cluster.serving import ports_of

CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid /run/nginx/pid;
error_log stderr warn;
events {{ worker_connections 16384; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 100000;
    client_body_temp_path /run/nginx/body;
    proxy_temp_path /run/nginx/proxy;
    fastcgi_temp_path /run/nginx/fastcgi;
    uwsgi_temp_path /run/nginx/uwsgi;
    scgi_temp_path /run/nginx/scgi;
    server {{
{listeners}
        default_type application/json;
        location / {{ return 200 '{answer}\\n'; }}
    }}
}}
"""


def main(container: Container) -> None:
    """Become nginx. Never returns; raises FileNotFoundError when nginx is not installed."""
    ports = ports_of(container, "TCP", 80)
    listeners = [f"        listen {address}:{port} backlog=16384;" for port in ports for address in ("0.0.0.0", "[::]")]
    who = {key: container.facts[key] for key in ("pod", "namespace", "node")}
    answer = json.dumps({**who, "client": {"ip": "$remote_addr"}, "path": "$request_uri"})
    directory = Path("/run/nginx")
    directory.mkdir()
    path = directory / "nginx.conf"
    path.write_text(CONFIGURATION.format(listeners="\n".join(listeners), answer=answer))
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
    os.execvp("nginx", ["nginx", "-c", str(path), "-e", "stderr"])
