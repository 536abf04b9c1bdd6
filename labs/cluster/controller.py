"""The loop that every controller runs: something changed, so look at everything and make it right.

Stands for client-go's informers and work queues. A controller here is level-triggered in the plainest way: a change of
any watched kind calls `reconcile`, which compares what should be with what is and writes the difference; changes that
come while it runs are one more run; for what is only a matter of time, `reconcile` says when it wants to be called.
Left out: a work queue by object, which only pays with many thousands of objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from labs.cluster.resources import Resource
from labs.cluster.store import AlreadyExists, Change, Conflict, Expired, NotFound, Store

RETRY_SECONDS = 0.2

log = logging.getLogger(__name__)


async def run_controller(
    store: Store,
    resources: Iterable[Resource | None],
    reconcile: Callable[[], float | None],
    concerns: Callable[[Change], bool] = lambda _: True,
) -> None:
    """Call `reconcile` now, and again after each change of one of `resources` (None: of any) that it `concerns`, for
    ever.

    What `reconcile` gives is the seconds after which it wants to be called without a change; None: not at all. A write
    that lost a race (Conflict, NotFound, AlreadyExists) is no error: the change that won calls for another run.
    """
    changed = asyncio.Event()
    changed.set()
    async with asyncio.TaskGroup() as group:
        for resource in resources:
            group.create_task(_raise_flag(store, resource, changed, concerns))
        seconds: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), seconds)
            changed.clear()
            try:
                seconds = reconcile()
            except (Conflict, NotFound, AlreadyExists) as error:
                log.info("%s: %s, once more", reconcile.__qualname__, error)
                changed.set()
                await asyncio.sleep(RETRY_SECONDS)
            # Writes of this run have raised the flag again; whoever else is ready goes first.
            await asyncio.sleep(0)


async def _raise_flag(
    store: Store, resource: Resource | None, changed: asyncio.Event, concerns: Callable[[Change], bool]
) -> None:
    while True:
        with contextlib.suppress(Expired), store.watch(resource) as watch:
            changed.set()
            async for change in watch:
                if concerns(change):
                    changed.set()
