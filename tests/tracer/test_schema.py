"""The schema says what the records are, and is shipped with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.tracer.fakes import EXAMPLE, FakeNames, raw, shape, untranslated
from tracer import recording
from tracer.encode import JsonLines
from tracer.events import IPPROTO_UDP, Connection, Flag, Outcome
from tracer.filters import Filter
from tracer.resolve import Resolver
from tracer.shapes import Shapes


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    document = json.loads(files("tracer").joinpath("schema/record.schema.json").read_text())
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_the_contracts_example_validates_and_round_trips(schema: Draft202012Validator) -> None:
    schema.validate(EXAMPLE)
    assert json.loads(json.dumps(Connection.from_json(EXAMPLE).to_json())) == EXAMPLE
    assert list(Connection.from_json(EXAMPLE).to_json()) == list(EXAMPLE)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("names", [FakeNames(), None])
@pytest.mark.parametrize(
    "packed",
    [
        shape,
        untranslated,
        lambda **more: untranslated(flags=Flag.SNAT, **more),
        lambda **more: shape(flags=Flag.SOCKET, **more),
        lambda **more: shape(flags=Flag.DNAT | Flag.SNAT | Flag.NO_PROCESS, **more),
        lambda **more: shape(protocol=IPPROTO_UDP, errno=111, comm=b"\xff" * 15, **more),
        lambda **more: shape(family=6, source="fd00::a", destination="fd00::1", backend="fd00::c", **more),
    ],
)
def test_every_record_that_is_produced_validates(
    schema: Draft202012Validator, packed: Any, names: FakeNames | None, outcome: Outcome
) -> None:
    shapes = Shapes(Resolver(names), Filter())
    batch = [raw(0, packed(outcome=outcome)), raw(1, packed(outcome=outcome), latency_ns=-1)]
    for line in b"".join(JsonLines().blocks(shapes.items(batch))).splitlines():
        schema.validate(json.loads(line))


def test_the_header_validates(schema: Draft202012Validator) -> None:
    schema.validate(recording.header())


@pytest.mark.parametrize(
    "wrong",
    [
        {**EXAMPLE, "time": "yesterday"},
        {**EXAMPLE, "outcome": "fine"},
        {**EXAMPLE, "more": 1},
        {**EXAMPLE, "latency_us": -1},
        {**EXAMPLE, "family": 5},
        {**EXAMPLE, "source": {**EXAMPLE["source"], "ip": "10.244.0"}},
        {**EXAMPLE, "destination": {**EXAMPLE["destination"], "kind": "Cluster"}},
        {**EXAMPLE, "process": {**EXAMPLE["process"], "comm": "longer than the kernel keeps"}},
        {key: value for key, value in EXAMPLE.items() if key != "errno"},
        {**recording.header(), "version": 2},
        {"type": "dns"},
        {},
    ],
)
def test_what_is_no_record_does_not_validate(schema: Draft202012Validator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schema.validate(wrong)


def test_other_types_share_some_members(schema: Draft202012Validator) -> None:
    schema.validate({"type": "dns", "time": EXAMPLE["time"], "node": None, "process": EXAMPLE["process"], "x": 1})
