"""Replaying a recording: the same filters and sinks as a live trace, without root or BPF.

What belongs here: walking a recording through filter and sinks. What does not: its format (`tracer.recording`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from tracer import recording
from tracer.filters import Filter
from tracer.recording import Document
from tracer.sinks import Interrupted, ReaderGone, Sink
from tracer.tally import Tally


def replay(
    path: str,
    wanted: Filter,
    sinks: Sequence[Sink],
    tally: Tally,
    *,
    count: int | None,
    seconds: float | None,
    stopped: Callable[[], bool],
) -> None:
    """Give the wanted records of a recording to every sink. Raises FormatError (after what is whole) or OutputError.

    The last sink decides what is counted: the line form can't show types that this version does not know;
    they are counted in `tally.other`, and other sinks take them all the same.
    """
    started = time.monotonic()

    def over() -> bool:
        return stopped() or (seconds is not None and time.monotonic() - started >= seconds)

    fd, name = recording.open_recording(path)
    try:
        for documents in recording.read(fd, name, over):
            chosen = _choose(documents, wanted, sinks[-1].every_type, tally, count)
            if chosen:
                for sink in sinks:
                    sink.documents(chosen)
            if count is not None and tally.records >= count:
                break
        for sink in sinks:
            sink.close()
    except (ReaderGone, Interrupted):
        pass
    finally:
        tally.seconds = time.monotonic() - started
        if path != "-":
            os.close(fd)


def _choose(
    documents: Sequence[Document], wanted: Filter, every_type: bool, tally: Tally, count: int | None
) -> list[Document]:
    """The wanted records, at most as many as `count` leaves; counts them."""
    chosen: list[Document] = []
    for document, connection in documents:
        if count is not None and tally.records >= count:
            break
        if connection is None:
            if not wanted.wants_other(document):
                continue
            if not every_type:
                tally.other[document["type"]] = tally.other.get(document["type"], 0) + 1
        elif not wanted.wants(connection):
            continue
        if connection is not None or every_type:
            tally.records += 1
        chosen.append((document, connection))
    return chosen
