"""Recordings: files of JSON lines, the first of which is a header.

What belongs here: the header, opening a file to record into, reading a recording back as records, and saying exactly
where it is damaged. What does not: filters and output (`tracer.replay`).
"""

from __future__ import annotations

import json
import os
import platform
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tracer import __version__
from tracer.encode import timestamp
from tracer.errors import FormatError, OutputError
from tracer.events import Connection

VERSION = 1
READ_BYTES = 1 << 16
POLL_MS = 100

Document = tuple[dict[str, Any], Connection | None]
"""A record as it stands in the file, and as a Connection if it is one."""


def header() -> dict[str, Any]:
    """The first record of a recording: version of the format, the tool that wrote it, when, and on which machine."""
    tool = f"k8snet-trace {__version__}"
    return {
        "type": "header",
        "version": VERSION,
        "tool": tool,
        "time": timestamp(time.time_ns()),
        "node": platform.node(),
    }


def create(path: str) -> int:
    """Open a file to record into, emptying an old one. Returns its descriptor; raises OutputError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}") from error


def open_recording(path: str) -> tuple[int, str]:
    """Open a recording; "-" is standard input. Returns its descriptor and its name for messages. Raises FormatError."""
    if path == "-":
        return sys.stdin.fileno(), "stdin"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
    except OSError as error:
        raise FormatError(f"can't read {path}: {error.strerror}") from error


def read(fd: int, name: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[list[Document]]:
    """The records of a recording, in the groups in which they can be read; headers are checked and left out.

    Ends early when `stopped` says so, also while a pipe has nothing to read. Records before a damaged line are
    given before FormatError tells of it, as NAME:LINE.
    """
    number = 0
    rest = b""
    for chunk in _chunks(fd, name, stopped):
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:  # the last line, without its newline
            lines.append(rest)
        documents: list[Document] = []
        for line in lines:
            number += 1
            try:
                document = _parse(line)
            except ValueError as error:
                yield documents
                why = "cut off in the middle of a record" if line is rest else str(error)
                raise FormatError(f"{name}:{number}: {why}") from error
            if document is not None:
                documents.append(document)
        yield documents


def _chunks(fd: int, name: str, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """What can be read, and at the end of the file b""."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    chunk = b"?"
    while chunk:
        while not poller.poll(POLL_MS):
            if stopped():
                return
        try:
            chunk = os.read(fd, READ_BYTES)
        except OSError as error:
            raise FormatError(f"can't read {name}: {error.strerror}") from error
        if stopped():
            return
        yield chunk


def _parse(line: bytes) -> Document | None:
    """One line; None for an empty one and for a header. Raises ValueError."""
    if not line.strip():
        return None
    try:
        document = json.loads(line.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from error
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        raise ValueError('no record: a JSON object with a "type" is expected')
    if document["type"] == "header":
        _check_version(document)
        return None
    if document["type"] != "connection":
        return document, None
    try:
        connection = Connection.from_json(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no connection record: {_reason(error)}") from error
    _check_types(connection)
    return document, connection


def _check_version(document: Mapping[str, Any]) -> None:
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        tool = document.get("tool")
        raise ValueError(
            f"recorded in version {version!r} of the format"
            + (f" by {tool}" if isinstance(tool, str) else "")
            + f"; k8snet-trace {__version__} reads version {VERSION}"
        )


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check_types(connection: Connection) -> None:
    """Raise ValueError when a value is not of the type that filters and the line form rely on."""
    for where, owner, fields in (
        ("", connection, _CONNECTION),
        ("process.", connection.process, _PROCESS),
        ("source.", connection.source, _END),
        ("destination.", connection.destination, _DESTINATION),
        ("backend.", connection.backend, _END),
        ("translation.", connection.translation, _TRANSLATION),
    ):
        for field, types in fields.items() if owner is not None else ():
            value = getattr(owner, field)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types) or _is_huge(value):
                raise ValueError(f"no connection record: {where}{field} can't be {json.dumps(value)}")
    if not all(isinstance(chain, str) for chain in connection.translation.via):
        raise ValueError("no connection record: translation.via holds more than strings")
    if not 0 <= (connection.translation.probability or 0) <= 1:
        raise ValueError("no connection record: translation.probability is not from 0 to 1")


def _is_huge(value: Any) -> bool:
    """Whether it is a number that no field of the kernel can hold."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64


_NONE = type(None)
_CONNECTION: dict[str, tuple[type, ...]] = {
    "time": (str,),
    "node": (str, _NONE),
    "protocol": (str,),
    "family": (int,),
    "outcome": (str, _NONE),
    "errno": (int, _NONE),
    "latency_us": (int, _NONE),
}
_PROCESS: dict[str, tuple[type, ...]] = {"pid": (int,), "comm": (str,), "cgroup_id": (int,), "netns": (int,)}
_END: dict[str, tuple[type, ...]] = {"ip": (str,), "port": (int,), "namespace": (str, _NONE), "pod": (str, _NONE)}
_DESTINATION: dict[str, tuple[type, ...]] = {
    "ip": (str,),
    "port": (int,),
    "namespace": (str, _NONE),
    "service": (str, _NONE),
    "port_name": (str, _NONE),
    "kind": (str, _NONE),
}
_TRANSLATION: dict[str, tuple[type, ...]] = {
    "by": (str, _NONE),
    "dnat": (bool,),
    "snat": (bool,),
    "probability": (int, float, _NONE),
}
