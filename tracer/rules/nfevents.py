"""Which chains of nf_tables change, iptables-nft's among them: what the kernel tells whoever listens.

What belongs here: names of what changed. What does not: how it is now (`live`, `partial`), and whether anything
changed, which is cheaper to ask (`changes`).
Source: Linux include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c, nft_commit_notify. The messages
of a transaction end with that of its generation.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from tracer import netns
from tracer.rules import nfnetlink

_GROUP = 7  # NFNLGRP_NFTABLES, include/uapi/linux/netfilter/nfnetlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_BUFFER = 8 << 20  # kube-proxy writes all of KUBE-SERVICES in each transaction: 10,000 rules are 8 MB of messages
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_PATIENCE = 0.3  # a generation is told at the end of its transaction, after it can be asked for

# Messages, and the attribute that names the chain: NFT_MSG_NEWCHAIN, DELCHAIN, NEWRULE, DELRULE
_CHAIN_NAME = {3: 3, 5: 3, 6: 2, 8: 2}
_NEW_GENERATION = 15
_SILENT = frozenset((18, 20, 21))  # NEWOBJ, DELOBJ, GETOBJ_RESET: counters and quotas, which rules name but do not hold
_TABLE = 1  # the attribute that names the table, of every message

TableName = tuple[str, str]  # family and name


@dataclass
class Touched:
    """The chains that changed, by table. whole: tables of which more than chains did. lost: that may not be all."""

    chains: dict[TableName, set[str]] = field(default_factory=dict)
    whole: set[TableName] = field(default_factory=set)
    lost: bool = False
    generation: int = 0


class Events:
    """What changes in the nf_tables of a network namespace from now on."""

    def __init__(self, netns_path: str | None) -> None:
        """Raises OSError without CAP_NET_ADMIN, and as `tracer.netns.run_in` does. nf_tables must be there."""
        self._socket = netns.run_in(netns_path, _listening)
        self._generation = 0  # told last

    def take(self, generation: int) -> Touched:
        """What changed since the last call, up to this generation; `lost` when the kernel does not tell that far."""
        touched = Touched(generation=self._generation)
        deadline = time.monotonic() + _PATIENCE
        while touched.generation < generation and not touched.lost:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                touched.lost = True
            else:
                self._drain(touched)
        self._generation = touched.generation
        return touched

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _drain(self, touched: Touched) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                touched.lost = True
                continue
            for kind, attributes in nfnetlink.messages(data):
                _note(touched, kind, attributes)


def _listening() -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nfnetlink.NETLINK_NETFILTER)
    try:
        with contextlib.suppress(PermissionError):  # CAP_NET_ADMIN in the first user namespace
            listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        listening.bind((0, 0))
        listening.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _note(touched: Touched, kind: int, attributes: dict[int, bytes]) -> None:
    if kind == _NEW_GENERATION:
        (touched.generation,) = struct.unpack(">I", attributes.get(_TABLE, b"\0\0\0\0"))
        return
    if kind in _SILENT:
        return
    table = nfnetlink.family(attributes), nfnetlink.text(attributes.get(_TABLE, b""))
    name = attributes.get(_CHAIN_NAME.get(kind, -1))
    if name is None:
        touched.whole.add(table)
    else:
        touched.chains.setdefault(table, set()).add(nfnetlink.text(name))
