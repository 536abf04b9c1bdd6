"""iptables as the node's components use it: save and restore, in whichever variant the node uses.

Stands for k8s.io/kubernetes/pkg/util/iptables. Rules go to the network namespace that the process lives in.
`iptables-restore` waits for /run/xtables.lock as kube-proxy does with -w; the pods of a node share that file through a
hostPath volume, as in the real thing.
"""

from __future__ import annotations

import asyncio
import shutil

from tracer.errors import K8snetError, ToolMissing

LOCK_SECONDS = 5


class Iptables:
    """The tables of one IP family (4 or 6). `variant`: legacy, nft, or default: what the machine's `iptables` is."""

    def __init__(self, family: int, variant: str = "default") -> None:
        self.family = family
        name = "iptables" if family == 4 else "ip6tables"
        self._prefix = name if variant == "default" else f"{name}-{variant}"

    async def save(self, table: str) -> list[str]:
        """The lines that iptables-save prints for a table. Raises ToolMissing, or K8snetError with its complaint."""
        return (await self._run(f"{self._prefix}-save", "-t", table)).splitlines()

    async def has_chain(self, table: str, chain: str) -> bool:
        """Whether a chain exists. Raises ToolMissing."""
        try:
            await self._run(self._prefix, "-w", str(LOCK_SECONDS), "-t", table, "-S", chain)
        except ToolMissing:
            raise
        except K8snetError:
            return False
        return True

    async def restore(self, text: str) -> None:
        """Load rules, each table in one transaction, keeping chains that are not declared. Raises as `save`."""
        await self._run(f"{self._prefix}-restore", "-w", str(LOCK_SECONDS), "--noflush", feed=text)

    async def _run(self, program: str, *arguments: str, feed: str = "") -> str:
        if shutil.which(program) is None:
            raise ToolMissing(
                f"{program} is not installed; nodes can't have rules without it", hint="apt install iptables"
            )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        output, complaint = await process.communicate(feed.encode())
        if process.returncode != 0:
            said = complaint.decode(errors="replace").strip()
            raise K8snetError(f"{program} failed ({process.returncode}): {said}")
        return output.decode(errors="replace")


def jumps_in_front(text: str, built_in: frozenset[str]) -> str:
    """Input for iptables-restore with its rules in built-in chains put in front of what those chains hold, in the same
    order.

    That is how kube-proxy adds its jumps: what others appended comes after them.
    """
    lines: list[str] = []
    jumps: list[str] = []
    for line in text.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[0] == "-A" and words[1] in built_in:
            jumps.append(f"-I {words[1]} {words[2]}")
            continue
        if line == "COMMIT":
            lines += reversed(jumps)
            jumps.clear()
        lines.append(line)
    return "\n".join([*lines, ""])
