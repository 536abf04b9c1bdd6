"""The process that holds one datapath with a number of Services, and measures it when it is told to.

It is started by `scale`, one for each datapath and number, and speaks JSON, one line for each request and answer:

    {"ask": "load"}                        -> {"full_sync_s", "rules", "memory_mb"}
    {"ask": "flows", "samples", "seed"}    -> {"first": {"p50", …}, "middle", "last", "direct", "all"}
    {"ask": "rates", "seconds"}            -> {"short", "kept"}
    {"ask": "updates", "count"}            -> {"ms": [...]}

or {"error", "hint", "missing"}, the last one true if the machine lacks something. Nothing is measured while it is not
asked, so that several can wait beside the one that is.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from labs.bench import datapaths, enclosure, flows, objects, rates
from labs.bench.enclosure import Cgroups
from labs.bench.names import ALL, DIRECT, FIRST, LAST, MIDDLE, variant_of
from labs.bench.wiring import Wiring
from tracer.errors import K8snetError, MissingError

UPDATE_SECONDS = 3.0  # after which no more changes are begun

Answer = dict[str, Any]


def main(datapath: str, services: int) -> int:
    """Be keeper and worker; gives the exit status."""
    return enclosure.run(lambda cgroups: _serve(datapath, services, cgroups))


def _serve(datapath: str, services: int, cgroups: Cgroups) -> None:
    worker: Worker | None = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(datapath, services, cgroups)
            answer = worker.answer(json.loads(line))
        except K8snetError as error:
            answer = {"error": error.message, "hint": error.hint, "missing": isinstance(error, MissingError)}
        except (OSError, NetlinkError) as error:
            answer = {"error": str(error), "hint": None, "missing": False}
        print(json.dumps(answer), flush=True)


@dataclass
class Worker:
    """One datapath in the caller's namespaces, which are its own. Raises K8snetError, OSError, NetlinkError."""

    datapath: str
    services: int
    cgroups: Cgroups

    def __post_init__(self) -> None:
        self._empty = self.cgroups.kernel_bytes()
        self._kernel = datapaths.prepare(self.datapath, self.services, self.cgroups.sockets)
        self._prepared = self.cgroups.kernel_bytes()
        self._wiring = Wiring(variant_of(self.datapath))
        self._numbers = {FIRST: 0, MIDDLE: self.services // 2, LAST: self.services - 1}
        self._vips = {name: objects.vip(number) for name, number in self._numbers.items()}
        self._changing = self.services // 2 + 1  # a Service that is none of those
        self._changes = 0

    def answer(self, request: dict[str, Any]) -> Answer:
        """Do what is asked."""
        match request:
            case {"ask": "flows", "samples": samples, "seed": seed}:
                return self._flows(samples, seed)
            case {"ask": "rates", "seconds": seconds}:
                return self._rates(seconds)
            case {"ask": "updates", "count": count}:
                return self._update(count)
            case _:
                return self._load()

    def _load(self) -> Answer:
        wired = self.cgroups.kernel_bytes()
        seconds, rules = self._kernel.load()
        gc.freeze()  # as the proxies do after their first sync
        loaded = self.cgroups.kernel_bytes()
        for name, number in self._numbers.items():
            flows.check(self._wiring, self._vips[name], objects.endpoints(number))
        megabytes = None
        if self._empty is not None and self._prepared is not None and wired is not None and loaded is not None:
            # Without the network, which is no datapath's
            megabytes = max(0, self._prepared - self._empty + loaded - wired) / 1e6
        return {"full_sync_s": seconds, "rules": rules, "memory_mb": megabytes}

    def _flows(self, samples: int, seed: int) -> Answer:
        times = flows.measure(self._wiring, {**self._vips, DIRECT: objects.endpoints(0)[0]}, samples, seed)
        times[ALL] = [one for name in self._vips for one in times[name]]
        return {name: flows.percentiles(found) for name, found in times.items()}

    def _rates(self, seconds: int) -> Answer:
        ips = list(self._vips.values())
        with rates.nginx(self._wiring):
            short = rates.measure(self._wiring, ips, seconds, keep_alive=False)
            return {"short": short, "kept": rates.measure(self._wiring, ips, seconds, keep_alive=True)}

    def _update(self, count: int) -> Answer:
        """Milliseconds of each of some changes; that new flows go where they should is checked after each."""
        found: list[float] = []
        began = time.monotonic()
        while len(found) < count and (not found or time.monotonic() - began < UPDATE_SECONDS):
            self._changes += 1
            found.append(self._kernel.replace_endpoint(self._changing, self._changes) * 1000)
            endpoints = objects.endpoints(self._changing, self._changes)
            flows.check(self._wiring, objects.vip(self._changing), endpoints, self._changes)
        return {"ms": found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
