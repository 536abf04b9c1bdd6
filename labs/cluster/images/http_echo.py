"""An HTTP server that says who it is and who asked: the workload of the lessons, such as fastapi/lets-ship-it.

Answers every path with JSON: {"pod", "namespace", "node", "client": {"ip", "port"}, "path"}. `client` is the address as
the server saw it, after all translation. Listens on all containerPorts of the pod (or --port N in args, else 8000),
both families.
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from labs.cluster.runtime.container import Container
from labs.cluster.serving import BACKLOG, leave_no_zombies, ports_of, say, wait_for_signal


def main(container: Container) -> None:
    """Serve until told to stop."""
    leave_no_zombies()
    asyncio.run(_serve(container))


async def _serve(container: Container) -> None:
    facts = container.facts

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        client = {"ip": peer[0].removeprefix("::ffff:"), "port": peer[1]} if peer else None
        body = {
            "pod": facts["pod"],
            "namespace": facts["namespace"],
            "node": facts["node"],
            "client": client,
            "path": request.path_qs,
        }
        return web.Response(text=json.dumps(body) + "\n", content_type="application/json")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    for port in ports_of(container, "TCP", 8000):
        await web.TCPSite(runner, None, port, backlog=BACKLOG).start()
        say(f"http-echo: listening on port {port}")
    container.ready()
    await wait_for_signal()
    await runner.cleanup()
