"""Files of images that are built while the cluster starts, with compilers that do nothing; the real one: front door."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from labs.cluster import ebpfcompiler, imagefiles
from labs.cluster.ebpfcompiler import OBJECT, Compiler
from labs.cluster.imagefiles import ImageFiles
from labs.cluster.images import NotPulled, UnknownImage
from tracer.bpfobject import BpfObject, MapShape
from tracer.errors import K8snetError

MADE = BpfObject(b"types", {"services": MapShape(1, 28, 20, 100, 1, 2, 3)}, {"lb_connect4": bytes(range(16))})


class FakeCompiler:
    """One that is through when it is let go on."""

    def __init__(self, result: bytes | K8snetError) -> None:
        self._result = result
        self._reader, self._writer = os.pipe()

    def go_on(self) -> None:
        os.close(self._writer)

    def result(self) -> bytes:
        os.read(self._reader, 1)
        os.close(self._reader)
        if isinstance(self._result, K8snetError):
            raise self._result
        return self._result


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefiles, "ROOT", tmp_path / "images")


def test_who_asks_waits_until_the_file_is_there() -> None:
    async def act() -> None:
        compiler = FakeCompiler(b"object")
        files = ImageFiles(compiler)
        asked = asyncio.create_task(files.of("k8snet/service-lb:v1"))
        assert await files.of("k8snet/http-echo") == {}, "which waits for nobody"
        await asyncio.sleep(0.05)
        assert not asked.done()
        compiler.go_on()
        ((target, file),) = (await asked).items()
        assert (target, file.read_bytes()) == (OBJECT, b"object")
        assert await files.of("service-lb") == {target: file}, "and a container that starts again"

    asyncio.run(act())


def test_who_gives_up_waiting_leaves_the_file_to_others() -> None:
    async def act() -> None:
        compiler = FakeCompiler(b"object")
        files = ImageFiles(compiler)
        one, other = (asyncio.create_task(files.of("service-lb")) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        compiler.go_on()
        assert set(await other) == {OBJECT}

    asyncio.run(act())


def test_what_could_not_be_built_can_not_be_pulled() -> None:
    async def act() -> None:
        compiler = FakeCompiler(K8snetError("the BPF programs don't compile"))
        files = ImageFiles(compiler)
        compiler.go_on()
        for _ in range(2):
            with pytest.raises(NotPulled, match="the BPF programs don't compile"):
                await files.of("service-lb")

    asyncio.run(act())


def test_where_nothing_is_built_there_are_no_files() -> None:
    async def act() -> None:
        assert await ImageFiles(None).of("service-lb") == {}
        with pytest.raises(UnknownImage):
            await ImageFiles(None).of("redis")

    asyncio.run(act())


# ---- the compiler's own process ----


def test_what_is_compiled_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebpfcompiler, "_compile", lambda _: MADE)
    assert ebpfcompiler.compiled() == MADE


def test_what_it_says_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> BpfObject:
        raise K8snetError("line 3: no")

    monkeypatch.setattr(ebpfcompiler, "_compile", refuse)
    with pytest.raises(K8snetError, match="line 3: no"):
        ebpfcompiler.compiled()


def test_that_it_died_without_a_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebpfcompiler, "_compile", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(K8snetError, match="the compiler of the Service datapath ended with status -9"):
        Compiler().result()
