"""Servers that say which pod they are, for pods on kind: what http-echo, tcp-echo and udp-echo are in miniature.

    python3 -c THIS http|tcp|udp PORT...

Runs with the python3 of a public image, so it is one file and needs the standard library only. When it serves, it makes
the file that the variable SERVING names.

What belongs here: the protocols of `http_echo` and `echo` in `labs.cluster.images`. What does not: anything else.
"""

import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer, ThreadingUDPServer

POD = os.environ.get("POD_NAME", socket.gethostname())


class Http(BaseHTTPRequestHandler):
    """Answers every request with who answers and who asks."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """One request."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = {
            "pod": POD,
            "namespace": os.environ.get("POD_NAMESPACE"),
            "node": os.environ.get("NODE_NAME"),
            "client": {"ip": self.client_address[0].removeprefix("::ffff:"), "port": self.client_address[1]},
            "path": self.path,
        }
        data = json.dumps(body).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the pod is asked often."""


class Tcp(BaseRequestHandler):
    """The pod's name, then every byte back."""

    def handle(self) -> None:
        """One connection."""
        try:
            self.request.sendall(f"{POD}\n".encode())
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            pass  # the client went away


class Udp(BaseRequestHandler):
    """The pod's name and the datagram."""

    def handle(self) -> None:
        """One datagram."""
        data, own = self.request
        own.sendto(f"{POD} ".encode() + data, self.client_address)


KINDS: dict[str, tuple[type[BaseServer], type[BaseRequestHandler]]] = {
    "http": (ThreadingTCPServer, Http),  # HTTPServer would ask DNS for its own name
    "tcp": (ThreadingTCPServer, Tcp),
    "udp": (ThreadingUDPServer, Udp),
}


def server(kind: str, port: int) -> BaseServer:
    """A server for both families, or for IPv4 where there is no other."""
    base, handler = KINDS[kind]
    dual = socket.has_dualstack_ipv6()

    class Server(base):  # type: ignore[misc, valid-type]
        address_family = socket.AF_INET6 if dual else socket.AF_INET
        allow_reuse_address = kind != "udp"
        daemon_threads = True
        request_queue_size = 1024

        def server_bind(self) -> None:
            if dual:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    made: BaseServer = Server(("::" if dual else "0.0.0.0", port), handler)
    return made


def main(kind: str, *ports: str) -> None:
    """Serve until told to stop; as a container's first process nothing but a handler ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    for port in ports:
        threading.Thread(target=server(kind, int(port)).serve_forever, daemon=True).start()
        print(f"{kind}-echo: listening on port {port}", flush=True)
    if "SERVING" in os.environ:
        Path(os.environ["SERVING"]).touch()
    signal.sigwait((signal.SIGTERM, signal.SIGINT))


if __name__ == "__main__":
    main(*sys.argv[1:])
