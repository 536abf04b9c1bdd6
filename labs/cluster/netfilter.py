"""iptables, nft and conntrack as the node's components use them.

Stands for k8s.io/kubernetes/pkg/util/iptables, sigs.k8s.io/knftables, and the calls in pkg/proxy/conntrack. All of them
work on the network namespace that the process lives in; iptables in whichever variant the node uses.
`iptables-restore` waits for /run/xtables.lock as kube-proxy does with -w; the pods of a node share that file through a
hostPath volume, as in the real thing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable

from tracer.errors import K8snetError, ToolMissing

LOCK_SECONDS = 5
NO_ENTRIES = "0 flow entries have been deleted"  # conntrack fails then; pkg/proxy/conntrack/conntrack.go


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
        return await _run("iptables", program, *arguments, feed=feed)


class Nft:
    """One table of nftables. `table`: family and name, as in "ip kube-proxy"."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.family = 4 if table.startswith("ip ") else 6

    async def names(self, kind: str) -> list[str]:
        """The names of the table's chains or sets (`kind`: "chain" or "set"); none when there is no such table.

        Raises as `run`.
        """
        text = await _run("nftables", "nft", "list", f"{kind}s", self.table.split()[0])
        names, inside = [], False
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["table"]:
                inside = " ".join(words[1:3]) == self.table
            elif inside and words[:1] == [kind]:
                names.append(words[1])
        return names

    async def run(self, script: str) -> None:
        """Run a script: one transaction. Raises ToolMissing, or K8snetError with nft's complaint."""
        await _run("nftables", "nft", "-f", "-", feed=script)


async def forget_flows(family: int, options: Iterable[str]) -> None:
    """Delete the connection-tracking entries of UDP that `options` of the command conntrack select; none is fine.

    Raises ToolMissing, or K8snetError with the command's complaint.
    """
    try:
        await _run("conntrack", "conntrack", "-D", "-f", f"ipv{family}", "-p", "udp", *options)
    except ToolMissing:
        raise
    except K8snetError as error:
        if NO_ENTRIES not in str(error):
            raise


async def _run(package: str, program: str, *arguments: str, feed: str = "") -> str:
    """Give what `program` of Debian's `package` prints. Raises ToolMissing, or K8snetError with its complaint."""
    if shutil.which(program) is None:
        raise ToolMissing(
            f"{program} is not installed; nodes can't have rules without it", hint=f"apt install {package}"
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
