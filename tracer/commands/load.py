"""k8snet-trace load FILE.c: a BPF program of the user's own, and what it reports, as lines or JSON.

What belongs here: options, and the loop from the ring buffer to standard output. What does not: compiling and attaching
(`tracer.bpf`), the records' form (`tracer.ownprogram`), tracepoints (`tracer.tracefs`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracer.errors import FormatError, NotRoot, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.bpf import OwnProgram

POLL_SECONDS = 0.1

EXAMPLES = """\b
Examples:
  k8snet-trace load --fields sock:inet_sock_set_state     what a tracepoint tells
  sudo k8snet-trace load connects.c                       load a program, and print what it reports; Ctrl-C ends it
  sudo k8snet-trace load connects.c --count 3 -o json     three records, as JSON

\b
A whole program:
  struct connect { u32 pid; char comm[16]; };
  BPF_RINGBUF_OUTPUT(connects, 8);
  TRACEPOINT_PROBE(sock, inet_sock_set_state) {
      struct connect it = { .pid = bpf_get_current_pid_tgid() >> 32 };
      bpf_get_current_comm(&it.comm, sizeof(it.comm));
      connects.ringbuf_output(&it, sizeof(it), 0);
      return 0;
  }
"""


@click.command(epilog=EXAMPLES)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.c")
@click.option("--fields", metavar="CATEGORY:EVENT", help="Print the fields of a tracepoint, and exit.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@click.option("--duration", type=click.FloatRange(min=0), metavar="SECONDS", help="End after a time.")
@click.option("--ready-file", type=click.Path(dir_okay=False), metavar="PATH", help="Create PATH once it is attached.")
@click.option("-o", "--output", type=click.Choice(["line", "json"]), default="line", show_default=True)
def load(file: Path | None, fields: str | None, output: str, **options: Any) -> None:
    """Load a BPF program of your own, and print its reports.

    FILE.c is C as BCC takes it. A function is attached by its name: TRACEPOINT_PROBE(category, event). What it hands
    to ringbuf_output() is printed, field by field: numbers, char[N] as text, u8[4], u8[16] and __be32 as addresses.
    No kernel headers are needed.
    """
    from tracer.sinks import ReaderGone

    if (file is None) == (fields is None):
        raise UsageError("give either FILE.c or --fields CATEGORY:EVENT", hint="k8snet-trace load --help")
    with contextlib.suppress(ReaderGone):
        if fields is not None:
            _show_fields(fields)
        elif file is not None:
            _load(file, output, **options)


def _show_fields(event: str) -> None:
    from tracer.terminal import writer
    from tracer.tracefs import fields

    writer().write("".join(f"{field.type:<24} args->{field.name}\n" for field in fields(event)))


def _load(file: Path, output: str, count: int | None, duration: float | None, ready_file: str | None) -> None:
    from tracer import bpf, tracefs
    from tracer.session import write_ready_file
    from tracer.stop import Stop

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: {error}") from error
    if os.geteuid() != 0:
        raise NotRoot("loading BPF programs needs root", hint=f"sudo k8snet-trace load {file}")
    with Stop() as stop:
        tracefs.directory()  # BCC looks there for the fields of a tracepoint
        for category, event in bpf.tracepoints(text):
            tracefs.fields(f"{category}:{event}")
        program = bpf.OwnProgram(text, file.name)
        try:
            if ready_file is not None:
                write_ready_file(ready_file)
            _print(program, output, count, duration, stop)
        finally:
            program.close()


def _print(
    program: OwnProgram, output: str, count: int | None, duration: float | None, stop: Callable[[], bool]
) -> None:
    from tracer.ownprogram import Layout, line
    from tracer.render import clock
    from tracer.terminal import writer

    layouts = {name: Layout(fields) for name, fields in program.buffers.items()}
    out = writer(stop)
    ends = None if duration is None else time.monotonic() + duration
    left, more = count, True
    while more and left != 0:
        more = not stop() and (ends is None or time.monotonic() < ends)  # what was written before the end is told, too
        for buffer, data in program.read(POLL_SECONDS if more else 0)[:left]:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            values = layouts[buffer].decode(data)
            document = json.dumps({"time": now, "buffer": buffer, "fields": values})
            out.write((document if output == "json" else line(clock(now), buffer, values)) + "\n")
            left = None if left is None else left - 1
