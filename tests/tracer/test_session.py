"""What comes before a trace: choosing a source and a node, the ready file, imports that are not made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tracer.fakes import FakeSource, ListSink, raw
from tracer import session
from tracer.errors import BackendUnavailable, NotRoot, OutputError
from tracer.filters import Filter
from tracer.session import Settings, clear_ready_file, live, open_source, write_ready_file
from tracer.source.live import DEFAULT_RING_BYTES
from tracer.tally import Tally
from tracer.trace import Limits


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def powerful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "require", lambda capability, purpose: None)


@pytest.mark.usefixtures("powerful")
class TestSource:
    """open_source, its backends replaced."""

    def test_auto_falls_back_to_conntrack_and_says_so(self, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
        def unavailable(*arguments: Any) -> Any:
            raise BackendUnavailable("no BPF backend works on this kernel")

        source = FakeSource()
        monkeypatch.setattr(session, "_open_live", unavailable)
        monkeypatch.setattr("tracer.source.conntrack.ConntrackSource", lambda: source)
        assert open_source("auto", None, said.append) is source
        assert said[0] == "note: no BPF backend works on this kernel"
        assert "knows no processes" in said[1]
        with pytest.raises(BackendUnavailable):
            open_source("fentry", None, said.append)

    def test_size_of_the_ring_buffer_is_handed_on(self, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
        asked: list[Any] = []

        def open_live(backend: str, **more: Any) -> FakeSource:
            asked.append((backend, more))
            return FakeSource()

        monkeypatch.setattr("tracer.source.live.open_live", open_live)
        open_source("kprobe", 65536, said.append)
        open_source("auto", None, said.append, rewrites_expected=True)
        assert [(name, more["ring_bytes"]) for name, more in asked] == [("kprobe", 65536), ("auto", DEFAULT_RING_BYTES)]


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tx\nCapEff:\t0000000000001000\n")
    session.require(session.CAP_NET_ADMIN, "listening")
    with pytest.raises(NotRoot, match="tracing needs root") as caught:
        session.require(session.CAP_SYS_ADMIN, "tracing")
    assert caught.value.exit_code == 3
    assert caught.value.hint == "sudo k8snet-trace"


class FakeOwnNames:
    """Names, as far as a session needs them beside the resolver."""

    generation = 0

    def __init__(self, node: str | None) -> None:
        self._node = node

    def own_node(self) -> str | None:
        return self._node


@pytest.mark.parametrize(
    ("node", "namespace", "asked", "nodes"),
    [
        ("kind-worker", 4026532000, (), ("kind-worker",)),
        ("kind-worker", 4026532000, ("*",), ("*",)),
        ("kind-worker", session.FIRST_PID_NAMESPACE, (), ()),  # a real node: all of its kernel is its own
        (None, 4026532000, (), ()),  # some container
    ],
)
def test_inside_a_node_that_shares_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    node: str | None,
    namespace: int,
    asked: tuple[str, ...],
    nodes: tuple[str, ...],
) -> None:
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0, namespace, *[0] * 8)))
    names: Any = FakeOwnNames(node)
    wanted = session._on_this_node(Filter(nodes=asked), names, said.append)
    monkeypatch.undo()
    assert wanted.nodes == nodes
    assert bool(said) == (nodes == ("kind-worker",))


def test_live_is_ready_only_when_the_source_is_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    ready = tmp_path / "ready"
    ready.write_text("stale")
    source, sink, tally = FakeSource([[raw(0)]]), ListSink(), Tally()

    def open_it(*arguments: Any) -> FakeSource:
        assert not ready.exists()
        return source

    monkeypatch.setattr(session, "open_source", open_it)
    settings = Settings(with_names=False, ready_file=str(ready), limits=Limits(1, 5.0))
    seen = []
    live(
        settings, Filter(), [sink], tally,
        stopped=lambda: False, say=said.append, on_ready=lambda source: seen.append(ready.read_text()),
    )  # fmt: skip
    assert seen == [f"{os.getpid()}\n"]
    assert (tally.backend, tally.records, len(sink.taken), source.closed) == ("fake", 1, 1, True)


class TestBeginning:
    """A trace that is made ready before its cluster is."""

    def test_it_begins_when_told_and_forgets_what_was_before(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
    ) -> None:
        begin, ready = tmp_path / "begin", tmp_path / "ready"
        kubeconfigs: list[str | None] = []

        class Told(FakeSource):
            """Told to begin while it reads what happened before."""

            def read(self, timeout: float) -> Any:
                batch = super().read(timeout)
                if batch and not begin.exists():
                    assert not ready.exists()
                    begin.write_text("/run/k8snet/a/kubeconfig")
                return batch

        source, sink, tally = Told([[raw(0)], [raw(1)], [raw(2)]]), ListSink(), Tally()
        monkeypatch.setattr(session, "open_source", lambda *arguments: source)
        monkeypatch.setattr(session, "_start_names", lambda kubeconfig, stack: kubeconfigs.append(kubeconfig))
        settings = Settings(ready_file=str(ready), begin_file=str(begin), limits=Limits(1, 5.0))
        end = time.monotonic() + 5
        live(settings, Filter(), [sink], tally, stopped=lambda: time.monotonic() > end, say=said.append)
        assert kubeconfigs == ["/run/k8snet/a/kubeconfig"]
        assert ready.exists()
        assert tally.records == 1, "the third: the second came before the names could be asked for"

    def test_it_ends_when_told_to_before(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
    ) -> None:
        source, sink, tally = FakeSource([[raw(0)]]), ListSink(), Tally()
        monkeypatch.setattr(session, "open_source", lambda *arguments: source)
        settings = Settings(begin_file=str(tmp_path / "begin"))
        live(settings, Filter(), [sink], tally, stopped=lambda: True, say=said.append)
        assert (source.closed, tally.records) == (True, 0)


def test_the_source_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    class Full(ListSink):
        def items(self, items: Any) -> None:
            raise OutputError("full")

    source = FakeSource([[raw(0)]])
    monkeypatch.setattr(session, "open_source", lambda *arguments: source)
    with pytest.raises(OutputError):
        live(Settings(with_names=False), Filter(), [Full()], Tally(), stopped=lambda: False, say=said.append)
    assert source.closed


def test_ready_file_appears_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    for _ in range(2):  # also when it exists
        write_ready_file(str(path))
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    clear_ready_file(str(path))
    clear_ready_file(str(path))
    assert not path.exists()


def test_ready_file_never_replaces_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(OutputError, match="no regular file"):
            clear_ready_file(str(path))
    with pytest.raises(OutputError, match="No such file"):
        write_ready_file(str(tmp_path / "none" / "ready"))


def test_nothing_heavy_is_imported_before_the_hooks_are_attached() -> None:
    modules = "tracer.cli, tracer.session, tracer.terminal, tracer.source.live, tracer.names, tracer.replay"
    code = f"import {modules}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tracer.cli" in loaded
    assert not loaded & {"bcc", "rich", "urllib3", "yaml", "jsonschema", "pyroute2", "iptc", "ssl", "tracer.doctor"}
