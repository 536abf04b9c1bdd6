"""What is in volumes and the downward API: pure functions, and files that change all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labs.cluster import atomicwriter
from labs.cluster.downward import field_text, resource_text
from labs.cluster.podenv import Sources, expand_path
from labs.cluster.volumecontents import File, Origin, VolumeTrouble, contents

POD: dict[str, Any] = {
    "metadata": {
        "name": "web-1",
        "namespace": "shop",
        "uid": "u-1",
        "labels": {"tier": "front", "app": "web"},
        "annotations": {"note": 'say "hi"\nand\tgo', "build": "7"},
    },
    "spec": {
        "containers": [
            {"name": "main", "resources": {"requests": {"cpu": "250m", "memory": "65Mi"}, "limits": {"cpu": "1500m"}}},
            {"name": "bare"},
        ],
        "initContainers": [{"name": "first", "resources": {"limits": {"memory": "1Gi"}}}],
    },
}
SOURCES = Sources(
    configs={"cfg": {"data": {"colour": "blue", "size": "7"}, "binaryData": {"raw": "AP8="}}},
    secrets={"sec": {"data": {"word": "c2VzYW1l"}}},
    allocatable={"cpu": "4", "memory": "8148012Ki"},
)
ORIGIN = Origin(
    POD, SOURCES, lambda audience, seconds: f"{audience or 'api'}/{seconds}", {"status.podIP": "10.244.1.7"}
)


def files(**volume: Any) -> dict[str, tuple[bytes, int]]:
    return {name: (file.data, file.mode) for name, file in contents({"name": "v", **volume}, ORIGIN).items()}


class TestContents:
    def test_all_of_a_config_map(self) -> None:
        assert files(configMap={"name": "cfg", "defaultMode": 0o644}) == {
            "colour": (b"blue", 0o644),
            "size": (b"7", 0o644),
            "raw": (b"\x00\xff", 0o644),
        }

    def test_items_and_modes(self) -> None:
        items = [{"key": "size", "path": "deep/er", "mode": 0o400}, {"key": "colour", "path": "c"}]
        source = {"name": "cfg", "defaultMode": 0o440, "items": items}
        assert files(configMap=source) == {"deep/er": (b"7", 0o400), "c": (b"blue", 0o440)}

    def test_a_secret(self) -> None:
        assert files(secret={"secretName": "sec", "defaultMode": 0o600}) == {"word": (b"sesame", 0o600)}

    @pytest.mark.parametrize(
        ("volume", "words"),
        [
            ({"configMap": {"name": "none"}}, 'configmap "none" not found'),
            ({"secret": {"secretName": "none"}}, 'secret "none" not found'),
            (
                {"configMap": {"name": "cfg", "items": [{"key": "x", "path": "x"}]}},
                "configmap references non-existent config key: x",
            ),
            (
                {"secret": {"secretName": "sec", "items": [{"key": "x", "path": "x"}]}},
                "references non-existent secret key: x",
            ),
            (
                {"projected": {"sources": [{"configMap": {"name": "a"}}, {"secret": {"name": "b"}}]}},
                '[configmap "a" not found, secret "b" not found]',
            ),
        ],
    )
    def test_what_is_missing_is_told_as_kubelet_tells_it(self, volume: dict[str, Any], words: str) -> None:
        with pytest.raises(VolumeTrouble) as caught:
            contents({"name": "v", **volume}, ORIGIN)
        assert caught.value.message == words

    def test_what_is_optional_may_be_missing(self) -> None:
        assert files(configMap={"name": "none", "optional": True}) == {}
        items = [{"key": "x", "path": "x"}, {"key": "size", "path": "s"}]
        assert files(configMap={"name": "cfg", "optional": True, "items": items}) == {"s": (b"7", 0o644)}

    def test_projected(self) -> None:
        sources = [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
            {"configMap": {"name": "cfg", "items": [{"key": "colour", "path": "c"}]}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]
        assert files(projected={"sources": sources, "defaultMode": 0o444}) == {
            "token": (b"api/3607", 0o444),
            "vault": (b"vault/3600", 0o444),
            "c": (b"blue", 0o444),
            "ns": (b"shop", 0o444),
        }


class TestDownwardApi:
    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("metadata.name", "web-1"),
            ("metadata.uid", "u-1"),
            ("metadata.labels", 'app="web"\ntier="front"'),
            ("metadata.annotations", 'build="7"\nnote="say \\"hi\\"\\nand\\tgo"'),
            ("metadata.labels['tier']", "front"),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.244.1.7"),
        ],
    )
    def test_fields(self, path: str, text: str) -> None:
        assert field_text(POD, path, ORIGIN.fields) == text

    @pytest.mark.parametrize(
        ("container", "resource", "divisor", "text"),
        [
            ("main", "requests.cpu", "1m", "250"),
            ("main", "requests.cpu", "0", "1"),
            ("main", "limits.cpu", None, "2"),
            ("main", "requests.memory", "1Mi", "65"),
            ("main", "requests.memory", "10M", "7"),
            ("main", "limits.memory", "1Mi", "7958"),
            ("bare", "requests.memory", None, "0"),
            ("bare", "limits.cpu", None, "4"),
            ("first", "limits.memory", None, "1073741824"),
        ],
    )
    def test_resources(self, container: str, resource: str, divisor: str | None, text: str) -> None:
        reference = {"resource": resource, **({"divisor": divisor} if divisor else {})}
        assert resource_text(POD, container, reference, SOURCES.allocatable) == text
        named = {**reference, "containerName": container}
        assert resource_text(POD, "other", named, SOURCES.allocatable) == text


def test_a_path_with_an_unknown_name_is_none() -> None:
    assert expand_path("a/$(POD)-$$(x)", {"POD": "p"}) == "a/p-$(x)"
    assert expand_path("$(NONE)/b", {"POD": "p"}) is None


class TestAtomicWriter:
    def test_a_change_leaves_what_is_wanted_and_nothing_else(self, tmp_path: Path) -> None:
        assert atomicwriter.write(tmp_path, {"a": File(b"1", 0o600), "deep/b": File(b"1", 0o644)})
        assert (tmp_path / "a").readlink() == Path("..data/a")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
        assert atomicwriter.write(tmp_path, {"a": File(b"2", 0o600), "c": File(b"2", 0o644)})
        names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("..2"))
        assert names == ["..data", "a", "c"]
        assert [(tmp_path / name).read_bytes() for name in ("a", "c")] == [b"2", b"2"]
        assert len(list(tmp_path.glob("..2*"))) == 1

    def test_what_has_not_changed_stays(self, tmp_path: Path) -> None:
        wanted = {"a": File(b"1", 0o600)}
        atomicwriter.write(tmp_path, wanted)
        link = (tmp_path / "..data").readlink()
        assert not atomicwriter.write(tmp_path, wanted)
        assert (tmp_path / "..data").readlink() == link
        assert atomicwriter.write(tmp_path, {"a": File(b"1", 0o400)})
        assert atomicwriter.write(tmp_path, {})
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("..")] == []
