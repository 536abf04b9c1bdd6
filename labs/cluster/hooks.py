"""Lifecycle hooks: what a container wants done right after its start and before its end.

Stands for pkg/kubelet/lifecycle/handlers.go, with its words. Left out: tcpSocket, which the real one refuses too.
"""

from __future__ import annotations

import asyncio
import json

from labs.cluster.execsync import NotExecuted
from labs.cluster.podstatus import full_name
from labs.cluster.probes import Reach, Unwell, get
from labs.cluster.resources import Object

HTTP_SECONDS = 30.0


class HookFailed(Exception):
    """A hook failed; the text is what kubelet says of it."""


async def run_hook(hook: Object, pod: Object, entry: Object, reach: Reach) -> None:
    """Run the hook of a container, whose `entry` in the pod's spec is given, to its end. Raises HookFailed."""
    where = f'for Container "{entry["name"]}" in Pod "{full_name(pod)}" failed - error'
    if hook.get("exec"):
        command = hook["exec"].get("command") or []
        words = " ".join(command)
        try:
            status, output = await reach.execute(command, None)
        except NotExecuted as error:
            raise HookFailed(f'Exec lifecycle hook ([{words}]) {where}: {error}, message: ""') from None
        if status != 0:
            said = json.dumps(output, ensure_ascii=False)
            failure = f"command '{words}' exited with {status}: {output}, message: {said}"
            raise HookFailed(f"Exec lifecycle hook ([{words}]) {where}: {failure}")
    elif hook.get("httpGet"):
        try:
            await get(hook["httpGet"], entry, reach, HTTP_SECONDS)  # whatever it answers, as with kubelet
        except Unwell as error:
            path = hook["httpGet"].get("path", "")
            raise HookFailed(f'Http lifecycle hook ({path}) {where}: {error}, message: ""') from None
    elif hook.get("sleep"):
        await asyncio.sleep(hook["sleep"]["seconds"])
    else:
        raise HookFailed(f"Cannot run handler: invalid handler: {hook}")
