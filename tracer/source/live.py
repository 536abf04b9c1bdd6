"""Live BPF: which programs make up each backend, reading their records, telling what was lost.

What belongs here: the choice of backend, when to sweep the ring buffer, what only time tells of a record (nobody
answered; it was reset at once), loss counters. What does not: compiling and attaching as such (`tracer.bpf`), offsets
(`tracer.btf`), names and output.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tracer import bpf, btf, heap, libbpf, netns
from tracer.bpf import Hook, Kind
from tracer.conntrack import FlowTuple
from tracer.errors import BackendUnavailable, K8snetError, NotRoot
from tracer.events import AF_INET6, IPPROTO_UDP, OUTCOME_OFFSET, Flag, Outcome, Shape
from tracer.source import lookups
from tracer.source.arrivals import Arrivals
from tracer.source.resets import resets_applied
from tracer.source.ringbuffer import Item, RingBuffer
from tracer.source.syscalls import Syscalls
from tracer.source.translations import COUNT, TRANSLATION, TUPLE, Translations
from tracer.source.watch import BUSY_RATE, Watch, can_ask

DEFAULT_RING_BYTES = 4 << 20  # 32,768 records: 2.7 s of 12,000 connections a second
SWEEP_SECONDS = 0.02
# A resolver asks again after 5 s (resolv.conf(5), options timeout); two seconds of silence are worth a line.
UDP_PATIENCE_NS = 2_000_000_000
UPKEEP_SECONDS = 0.5
# How long a connection that was established may still turn out to be reset before a byte came.
RESET_SECONDS = 0.005
CLOCK_LOOKS = 5

BACKENDS = ("fentry", "kprobe", "tracepoint")
_CORE = ("connections.c", "datagrams.c", "hooks_common.c")
_FILES = {
    "fentry": (*_CORE, "hooks_functions.c", "hooks_fentry.c"),
    "kprobe": (*_CORE, "hooks_functions.c", "hooks_kprobe.c"),
    "tracepoint": (*_CORE, "hooks_tracepoint.c"),
}
_TRACEPOINTS = (
    "kfree_skb",
    "net_dev_queue",
    "tcp_receive_reset",
    # Linux kernel commit e6a3e4434000 ("net: sock: add tracepoint for inet_sk_error_report") (in v5.14)
    "inet_sk_error_report",
    "inet_sock_set_state",
)
# Kernel functions probed by fentry and kprobe: at entry, and at return.
_ENTRIES = ("__nf_conntrack_confirm", "inet_stream_connect", "inet_dgram_connect", "udp_sendmsg", "udpv6_sendmsg")
_RETURNS = _ENTRIES[1:]
# Functions that the small ones at tracepoints go on to, through the map after_TRACEPOINT
_CONTINUED = {
    "inet_sock_set_state": "on_request_state",
    "net_dev_queue": "on_queued_packet",
    "sock_send_length": "on_datagram_sent",
}
_SIZES = {"MAX_REQUESTS": 65536, "MAX_TRANSLATED": 65536, "MAX_ASKED": 16384, "MAX_DATAGRAMS": 16384}
# enum lost_stage
STAGES = ("ring buffer", "request map", "translation map", "datagram map", "unwatched packet", "outcome queue")

_SILENT = frozenset({Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.SENT})
_REQUEST = struct.Struct("=QQII16s16sHBxIHHI")  # struct request


def _defines(ring_bytes: int, *, typed: bool, asks: bool) -> dict[str, int]:
    defines = {**btf.offsets(), **_SIZES, "RING_BUFFER_PAGES": ring_bytes // mmap.PAGESIZE}
    if typed:
        defines["TYPED_ARGUMENTS"] = 1
    if asks:
        defines.update(lookups.defines(), LOOKS_UP=1, MAX_FINISHED=max(1024, ring_bytes // 128))
    return defines


def _try(backend: str) -> None:
    """Ask the kernel for one hook of `backend`, before the third of a second that compiling takes. Raises
    BackendUnavailable.
    """
    if backend == "fentry":
        libbpf.try_tracing("fentry", _ENTRIES[1])
    elif backend == "kprobe":
        libbpf.try_kprobe(_ENTRIES[1])


def _has_typed_tracepoints() -> bool:
    try:
        libbpf.try_tracing("tp_btf", "net_dev_queue")
    except BackendUnavailable:
        # Linux kernel commit 9e15db66136a ("bpf: Implement accurate raw_tp context access via BTF") (in v5.5)
        return False
    return True


def _hooks(backend: str, kind: Kind) -> Iterator[Hook]:
    """In the order to attach them: what opens a request comes last, or the first ones would lack their translation.

    `kind`: of the tracepoints.
    """
    if backend != "tracepoint":
        entry, leave = (Kind.FENTRY, Kind.FEXIT) if backend == "fentry" else (Kind.KPROBE, Kind.KRETPROBE)
        for function in _RETURNS:
            yield Hook(leave, function, f"leave_{function}")
        for function in _ENTRIES:
            yield Hook(entry, function, f"enter_{function.lstrip('_')}")
    for tracepoint in _TRACEPOINTS:
        yield Hook(kind, tracepoint, f"on_{tracepoint}")


class LiveSource:
    """A backend of BPF programs, attached; a `tracer.source.Source`.

    Raises BackendUnavailable when this kernel can't run it, NotRoot, BpfCompileError.
    """

    def __init__(
        self,
        backend: str,
        *,
        ring_bytes: int = DEFAULT_RING_BYTES,
        rewrites_expected: bool = False,
        busy_rate: float = BUSY_RATE,
    ) -> None:
        """`rewrites_expected`: programs that rewrite the addresses of connect() are to come. `busy_rate`: connections
        per second from which on the tracepoint backend does not look at packets (`tracer.source.watch`).
        """
        if os.geteuid() != 0:
            raise NotRoot("loading BPF programs needs root", hint="sudo k8snet-trace")
        self.backend = backend
        _try(backend)
        with btf.held():
            self._load(ring_bytes, busy_rate, rewrites_expected)
        if self._syscalls is not None:
            self._syscalls.look(wait=True)
        heap.give_back()
        self._ring = RingBuffer(self._programs.map_fd("records"), ring_bytes)
        self._lost = self._programs.map("lost", 4, 8, per_cpu=True)
        self._unanswered = self._programs.map("datagram_requests", TUPLE.size, _REQUEST.size)
        self._translations = Translations(
            self._programs.map("translations", TUPLE.size, TRANSLATION.size),
            self._programs.map("translated_destinations", 4, COUNT.size),
        )
        # Every namespace: on kind and in the miniature cluster each node is one.
        seed = threading.Thread(target=lambda: self._translations.seed(netns.every().items()), name="seed", daemon=True)
        seed.start()
        self._next_upkeep = time.monotonic() + UPKEEP_SECONDS
        self._closed = False

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, timeout: float) -> Sequence[Item]:
        """See Source.read: looks every SWEEP_SECONDS until there is something, or `timeout` seconds have passed."""
        deadline = time.monotonic() + timeout
        while True:
            self._settle()
            waiting, expired = self._ring.waiting(), list[Item]()
            now = time.monotonic()
            self._arrivals.tick(now)
            if self._watch is not None:
                self._watch.tick(now, waiting, self._arrivals.used)
            if now >= self._next_upkeep:
                self._next_upkeep = now + UPKEEP_SECONDS
                self._set_clock()
                if self._syscalls is not None:
                    self._syscalls.look()
                expired = self._expire_datagrams()
            if waiting or expired:
                return [*self._settled(waiting), *map(self._completed, expired)] if expired else self._settled(waiting)
            if now >= deadline:
                return ()
            time.sleep(min(SWEEP_SECONDS, max(0.0, deadline - now)))

    def has_room(self) -> bool:
        """See Source.has_room."""
        now = time.monotonic()
        self._settle()
        self._arrivals.tick(now)
        if self._watch is not None:
            self._watch.tick(now, 0, self._arrivals.used)
        return self._ring.filled() <= 0.25

    def _load(self, ring_bytes: int, busy_rate: float, rewrites_expected: bool) -> None:
        """Compile, load and attach."""
        backend = self.backend
        kind = Kind.TYPED_TRACEPOINT if _has_typed_tracepoints() else Kind.RAW_TRACEPOINT
        asks = backend == "tracepoint" and can_ask()
        files = (*_FILES[backend], "lookups.c") if asks else _FILES[backend]
        self._defines = _defines(ring_bytes, typed=kind is Kind.TYPED_TRACEPOINT, asks=asks)
        self._programs = bpf.Programs(files, self._defines)
        self._syscalls, self._watch = None, None
        if backend == "tracepoint":
            self._syscalls = Syscalls(self._programs, self._defines, expected=rewrites_expected)
        try:
            self._clock = self._programs.map("since_boot", 4, 8)
            self._set_clock()
            arrivals = self._programs.load(Hook(kind, "netif_receive_skb", "on_netif_receive_skb"))
            self._arrivals = Arrivals(arrivals, self._programs.map("attention", 4, 8))
            self._load_continuations(kind)
            attached = {hook.target: self._programs.attach(hook) for hook in _hooks(backend, kind)}
            packets = attached.get("net_dev_queue")
            if asks and packets is not None:
                self._watch = _watch(self._programs, packets, kind, busy_rate)
        except BaseException:
            self._programs.close()
            raise

    def _load_continuations(self, kind: Kind) -> None:
        """Load what the small programs of this backend go on to."""
        names = self._programs.map_names()
        for tracepoint, function in _CONTINUED.items():
            if f"after_{tracepoint}" in names:
                loaded = self._programs.load(Hook(kind, tracepoint, function))
                continuation = self._programs.map(f"after_{tracepoint}", 4, 4)
                continuation.set(struct.pack("=I", 0), struct.pack("=I", loaded.program))

    def _settle(self) -> None:
        """Have all outcomes in the ring buffer, also of connections whose packets nobody looked at."""
        if self._watch is not None:
            self._watch.settle()

    def _settled(self, waiting: int) -> Sequence[Item]:
        """The `waiting` records of the ring buffer, in order of the outcomes.

        They are swept once RESET_SECONDS have passed since the last outcome: a reset may follow an established one.
        """
        if not waiting:
            return ()
        self._await_resets(waiting)
        batch: Sequence[Item] = self._ring.look(waiting)
        self._settle()
        known = self._ring.waiting()
        outcomes = self._ring.outcomes(known)
        if Outcome.RESET in outcomes:
            # One that came meanwhile is met again by the next batch, which has nothing for it.
            batch = resets_applied(batch, self._ring.look(known))
        unwatched = self._watch is not None and self._watch.since_ns > 0 and Outcome.ANSWERED in outcomes
        if unwatched or any(outcome in outcomes for outcome in _SILENT):
            batch = [self._completed(item) if self._lacks_something(item) else item for item in batch]
        self._ring.drop(waiting)
        return batch

    def _await_resets(self, waiting: int) -> None:
        """Sleep until RESET_SECONDS have passed since the outcome of the last of the `waiting` records."""
        ended_ns = self._ring.ended_ns(waiting)
        young = RESET_SECONDS - (time.time_ns() - ended_ns) / 1e9
        if 0 < young <= RESET_SECONDS:
            time.sleep(young)

    def _set_clock(self) -> None:
        """Tell the programs what time it is: the clock may be set, or drift, while a trace goes on."""
        self._since_boot = since_boot()
        self._clock.set(struct.pack("=I", 0), struct.pack("=Q", self._since_boot))

    @property
    def sees_connect(self) -> bool:
        """Whether connect() itself is watched, and not only what it leads to (KNOWN_ISSUES.md)."""
        return self._syscalls is None or self._syscalls.attached

    @property
    def looks_at_packets(self) -> bool:
        """Whether translations are read from packets, or function calls, as they pass (`tracer.source.watch`)."""
        return self._watch is None or self._watch.looks

    def losses(self) -> dict[str, int]:
        """See Source.losses."""
        counts = {}
        for index, stage in enumerate(STAGES):
            per_cpu = self._lost.get(struct.pack("=I", index)) or b""
            counts[stage] = sum(count for (count,) in struct.iter_unpack("=Q", per_cpu))
        return {stage: count for stage, count in counts.items() if count}

    def close(self) -> None:
        """See Source.close."""
        if not self._closed:
            self._closed = True
            if self._watch is not None:
                self._watch.close()
            self._translations.close()
            self._ring.close()
            if self._syscalls is not None:
                self._syscalls.close()
            self._programs.close()

    def _expire_datagrams(self) -> list[Item]:
        """Records of the datagrams that nobody has answered for UDP_PATIENCE_NS."""
        expired = []
        oldest = time.monotonic_ns() - UDP_PATIENCE_NS
        for key in list(self._unanswered):
            value = self._unanswered.get(key)
            # delete() decides who reports: the answer may come just now, and the kernel then submits the record.
            if value is None or _REQUEST.unpack(value)[0] >= oldest or not self._unanswered.delete(key):
                continue
            # A doubtful datagram was itself an answer, unless somebody answers it.
            if not _REQUEST.unpack(value)[-1]:
                expired.append(self._unanswered_record(key, value))
        return expired

    def _unanswered_record(self, key: bytes, value: bytes) -> Item:
        """What submit_connection in bpf/connections.c would have written, with outcome SENT."""
        started, cgroup_id, pid, inode, comm, asked, asked_port, asked_family, *_ = _REQUEST.unpack(value)
        source, destination, sport, dport, l3, _ = TUPLE.unpack(key)
        went = self._translations.follow(key)
        flags, nat_netns = went.flags, went.netns
        family, port = 6 if l3 == AF_INET6 else 4, int.from_bytes(dport, "big")
        if asked_family and any(asked) and (asked, asked_port) != (destination, port):
            flags |= Flag.SOCKET
            family, destination, port = asked_family, asked, asked_port
        translated = flags & (Flag.DNAT | Flag.SOCKET)
        backend, bport = (went.destination, went.port) if translated else (bytes(16), 0)
        shape = Shape(
            cgroup_id, pid, inode, nat_netns, family, IPPROTO_UDP, Outcome.SENT, flags, 0,
            port, bport, source, destination, backend, comm,
        )  # fmt: skip
        return self._since_boot + started, -1, int.from_bytes(sport, "big"), shape.pack()

    def _lacks_something(self, item: Item) -> bool:
        """Whether no hook may have seen where the request went, or that it was answered."""
        outcome = item[3][OUTCOME_OFFSET]
        if outcome == Outcome.ANSWERED and self._watch is not None:
            return item[0] - self._since_boot < self._watch.since_ns
        return outcome in _SILENT

    def _completed(self, item: Item) -> Item:
        """A record of a request whose answer, or whose translation, no hook saw, with what conntrack knows of it.

        An answer to a process of the node itself, right after a quiet time, is such a one (`tracer.source.arrivals`).
        """
        time_ns, latency_ns, sport, packed = item
        shape = Shape.unpack(packed)
        translated = shape.flags & (Flag.DNAT | Flag.SNAT)
        if translated and shape.outcome != Outcome.SENT:
            return item
        size = 16 if shape.family == 6 else 4
        asked = (shape.backend, shape.bport) if shape.flags & Flag.SOCKET else (shape.destination, shape.dport)
        flow = FlowTuple(shape.source[:size], sport, asked[0][:size], asked[1])
        known = self._translations.ask(shape.protocol, flow)
        if known is None:
            return item
        if known.answered and shape.outcome == Outcome.SENT:
            shape = shape._replace(outcome=Outcome.ANSWERED)
        if known.flags and not translated:
            shape = shape._replace(flags=shape.flags | known.flags, nat_netns=known.netns)
            if known.flags & Flag.DNAT:
                shape = shape._replace(backend=known.destination, bport=known.port)
        return time_ns, latency_ns, sport, shape.pack()


def _watch(programs: bpf.Programs, packets: bpf.Attachment, kind: Kind, busy_rate: float) -> Watch | None:
    """None: packets are looked at always."""
    try:
        return Watch(programs, packets, kind, busy_rate=busy_rate)
    except BackendUnavailable:
        return None


def since_boot() -> int:
    """What to add to CLOCK_MONOTONIC for nanoseconds since 1970.

    On a busy machine others may run between a look at one clock and at the other: the quickest of a few looks counts.
    """
    looks = []
    for _ in range(CLOCK_LOOKS):
        before, now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, now - (before + after) // 2))
    return min(looks)[1]


def open_live(
    backend: str = "auto",
    *,
    ring_bytes: int = DEFAULT_RING_BYTES,
    rewrites_expected: bool = False,
    on_fallback: Callable[[str], None] | None = None,
) -> LiveSource:
    """Attach `backend`, or with "auto" the first of BACKENDS that this kernel takes.

    `on_fallback` hears why each better one was passed over. Raises BackendUnavailable with all the reasons when none
    works.
    """
    if backend != "auto":
        return LiveSource(backend, ring_bytes=ring_bytes, rewrites_expected=rewrites_expected)
    reasons = []
    for name in BACKENDS:
        try:
            return LiveSource(name, ring_bytes=ring_bytes, rewrites_expected=rewrites_expected)
        except BackendUnavailable as error:
            reasons.append(f"{name}: {error.message}")
            if on_fallback:
                on_fallback(reasons[-1])
    raise BackendUnavailable(
        "no BPF backend works on this kernel:\n" + "\n".join(reasons), hint="k8snet-trace --backend conntrack"
    )


def probe_backend(name: str) -> None:
    """Compile, load, attach and remove a backend; raises what LiveSource raises."""
    LiveSource(name, ring_bytes=16 * mmap.PAGESIZE).close()


def show(backend: str) -> str:
    """The C that `backend` would load on this machine; "auto" shows the best. Offsets that can't be had are left
    out.
    """
    try:
        defines = _defines(DEFAULT_RING_BYTES, typed=True, asks=False)
    except K8snetError:
        defines = dict(_SIZES)
    return bpf.show(_FILES[BACKENDS[0] if backend == "auto" else backend], defines)
