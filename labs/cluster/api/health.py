"""/healthz, /livez and /readyz, whole and check by check.

Stands for k8s.io/apiserver/pkg/server/healthz. Whoever gets an answer at all gets a good one: what serves it is what
would be ill.
"""

from __future__ import annotations

from aiohttp import web

WHOLE = ("healthz", "livez", "readyz")
CHECKS = ("ping", "log", "etcd")


def answer(request: web.BaseRequest, path: str) -> web.Response | None:
    """The answer at a path, without a slash at its end; None when that is none of these."""
    name, _, check = path.removeprefix("/").partition("/")
    if name not in WHOLE or (check and check not in CHECKS):
        return None
    if check or "verbose" not in request.query:
        return web.Response(text="ok")
    left_out = request.query.getall("exclude", [])
    lines = [f"[+]{one} {'excluded: ' if one in left_out else ''}ok" for one in CHECKS]
    return web.Response(text="\n".join([*lines, f"{name} check passed\n"]))
