"""What standard output is, and the sinks that suit it.

What belongs here: whether it is a terminal, how wide, whether it may be coloured. What does not: the sinks themselves.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from tracer.errors import OutputError
from tracer.lines import WIDTH, LineSink, Painter
from tracer.rates import RateSink
from tracer.sinks import JsonSink, Sink, Writer

STDOUT = 1


def sinks(output: str, record: tuple[int, str] | None, stopped: Callable[[], bool]) -> list[Sink]:
    """The sinks for `-o line` or `-o json` and a file to record into (descriptor and name); standard output comes last.

    A recording begins with its header at once. Raises OutputError.
    """
    chosen: list[Sink] = []
    if record is not None:
        from tracer.recording import header

        recorder = JsonSink(Writer(*record))
        recorder.documents([(header(), None)])
        chosen.append(recorder)
    chosen.append(_stdout(output, stopped))
    return chosen


def size() -> tuple[int, int]:
    """Columns and rows of the terminal; $COLUMNS and $LINES go first, WIDTH by 24 where there is no terminal."""
    return shutil.get_terminal_size((WIDTH, 24))


def coloured() -> bool:
    """Whether standard output takes colours: a terminal that can, and no NO_COLOR (no-color.org)."""
    return os.isatty(STDOUT) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def writer(stopped: Callable[[], bool] = lambda: False) -> Writer:
    """What writes to standard output. Raises OutputError when it is closed."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    return Writer(STDOUT, "standard output", encoding=sys.stdout.encoding, stopped=stopped)


def _stdout(output: str, stopped: Callable[[], bool]) -> Sink:
    out = writer(stopped)
    if output == "json":
        return JsonSink(out)
    painter = Painter(colour=coloured())
    if os.isatty(STDOUT):
        return RateSink(out, painter, size)
    return LineSink(out, painter, lambda: size()[0])
