"""From flows to a report: pure, and what people see of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.tracer.names.service_maps import service_port
from tracer.destination import Destination
from tracer.names.model import PodName
from tracer.probe.flows import Answer, Flow, Hop
from tracer.probe.origin import Origin
from tracer.probe.packets import Ends
from tracer.probe.prediction import Prediction
from tracer.probe.report import Report, fate, summarise
from tracer.probe.table import lines, shortened

SERVICE = service_port("web", "10.96.0.1", 80, ("10.0.2.2", 8000))
KNOWN = Destination("shop/web:http", "10.96.0.1", 80, "TCP", SERVICE, SERVICE.addresses[0])
BARE = Destination("10.96.0.1:80", "10.96.0.1", 80, "TCP")
ENDS = Ends("TCP", "10.0.1.2", "10.96.0.1", 80)
THIRDS = Prediction({(f"10.0.2.{n}", 8000): 1 / 3 for n in (2, 3, 4)})
POD = Origin("default/client", 7, "/x", PodName("default", "client"))


def flow(
    ip: str | None = None, answer: Answer | None = Answer.ANSWERED, by: str = "10.96.0.1", held_back: bool = False
) -> Flow:
    hops = () if ip is None else (Hop(9, "10.0.1.2", ip, 8000, True),)
    return Flow(61000, 1, b"", 0.0, held_back, answer, None, by if answer else None, 80 if answer else None, b"", hops)


def report(flows: Sequence[Flow], prediction: Prediction, destination: Destination = KNOWN) -> Report:
    def pod(ip: str, port: int) -> PodName | None:
        return PodName("shop", f"web-58d-{ip[-1]}") if ip.startswith("10.0.2.") else None

    return summarise(destination, POD, ENDS, flows, prediction, pod, ("said before",))


@pytest.mark.parametrize(
    ("destination", "one", "expected"),
    [
        (KNOWN, flow("10.0.2.2"), "answered"),
        (KNOWN, flow("10.0.2.2", Answer.RESET), "refused"),
        (KNOWN, flow("10.0.2.2", Answer.PORT_UNREACHABLE), "refused"),
        (KNOWN, flow(None, Answer.RESET), "rejected"),  # a rule's tcp-reset: the Service was never translated
        (KNOWN, flow(None, Answer.PORT_UNREACHABLE), "rejected"),
        (BARE, flow(None, Answer.RESET), "refused"),
        (BARE, flow(None, Answer.PORT_UNREACHABLE), "refused"),
        (BARE, flow(None, Answer.PORT_UNREACHABLE, by="10.0.1.1"), "rejected"),
        (BARE, flow("10.0.2.2", Answer.PROHIBITED), "rejected"),
        (BARE, flow(None, None, held_back=True), "rejected"),
        (BARE, flow(None, Answer.UNREACHABLE), "unreachable"),
        (KNOWN, flow("10.0.2.2", None), "unanswered"),
    ],
)
def test_the_word_for_how_a_flow_ended(destination: Destination, one: Flow, expected: str) -> None:
    assert fate(one, destination) == expected


def test_the_document() -> None:
    flows = [flow("10.0.2.2")] * 20 + [flow("10.0.2.3", Answer.RESET)] * 10 + [flow(None, None)] * 3
    document = json.loads(json.dumps(report(flows, THIRDS).to_json()))
    reached = document.pop("reached")
    assert document == {
        "destination": "shop/web:http",
        "address": {"ip": "10.96.0.1", "port": 80},
        "service": {"namespace": "fastapi", "name": "web", "port_name": "http"},
        "protocol": "TCP",
        "source": "10.0.1.2",
        "from": "default/client",
        "sent": 33,
        "answered": 20,
        "refused": 10,
        "rejected": 0,
        "unreachable": 0,
        "unanswered": 3,
        "chi_square": pytest.approx(20.0),
        "degrees": 2,
        "p_value": pytest.approx(4.54e-5, rel=1e-3),
        "notes": ["said before"],
    }
    assert [(each["ip"], each["observed"], each["expected"]) for each in reached] == [
        ("10.0.2.2", 20, pytest.approx(10)),
        ("10.0.2.3", 10, pytest.approx(10)),
        ("10.0.2.4", 0, pytest.approx(10)),
    ]
    assert reached[0] == {
        "ip": "10.0.2.2",
        "port": 8000,
        "namespace": "shop",
        "pod": "web-58d-2",
        "observed": 20,
        "expected": pytest.approx(10),
        "share": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(
    ("prediction", "test", "note"),
    [
        (Prediction(THIRDS.shares, affinity_seconds=60), (None, None, None), "session affinity"),
        (Prediction(reason="they say nothing"), (None, None, None), "they say nothing"),
        (Prediction({("10.0.2.2", 8000): 1.0}), (None, None, None), None),
        (Prediction({("10.0.2.3", 8000): 1.0}), (None, None, 0.0), "by the rules nothing goes to 10.0.2.2:8000"),
        (
            Prediction({("10.0.2.3", 8000): 1.0}, otherwise=frozenset({("10.0.2.2", 8000)}), depends=("the weather",)),
            (None, None, None),
            "does not apply: the weather",
        ),
        (THIRDS, (pytest.approx(8.0), 2, pytest.approx(0.0183, abs=1e-4)), "--count 15 would do"),
    ],
)
def test_what_is_compared(prediction: Prediction, test: tuple[object, ...], note: str | None) -> None:
    made = report([flow("10.0.2.2")] * 4, prediction)
    assert (made.chi_square, made.degrees, made.p_value) == test
    if note is None:
        assert made.notes == ("said before",)
    else:
        _, said = made.notes
        assert note in said


def test_nothing_is_compared_when_nothing_arrived() -> None:
    made = report([flow(None, None)] * 4, THIRDS)
    assert (made.chi_square, made.p_value) == (None, None)
    assert [each.observed for each in made.reached] == [0, 0, 0]


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width: int) -> None:
    flows = [flow("10.0.2.2")] * 20 + [flow("10.0.2.3", Answer.RESET)] * 10 + [flow(None, None)] * 3

    def pod(ip: str, port: int) -> PodName:
        return PodName("shop", "a-very-long-name-of-a-deployment-indeed-so-long-584c4f66f8-htx9" + ip[-1])

    made = summarise(KNOWN, POD, ENDS, flows, THIRDS, pod, ("the rules have changed meanwhile: " * 4,))
    text = ["".join(span.text for span in line) for line in lines(made, width)]
    assert max(map(len, text)) <= width
    assert text[0].startswith("33 TCP flows from default/client (10.0.1.2) to fastapi/web:http (10.96.0.1:80)"[:70])
    (row,) = [line for line in text if line.startswith("10.0.2.3:8000")]
    assert row.endswith("10      10.0  1/3") and "-htx93 " in row
    assert any(line.startswith("Answers: 20 answered, 10 refused, 3 unanswered.") for line in text)
    assert "chance alone is so uneven once in" in " ".join(map(str.strip, text))


def test_what_comes_from_elsewhere_is_escaped() -> None:
    made = summarise(
        KNOWN, POD, ENDS, [flow("10.0.2.2")], THIRDS, lambda ip, port: PodName("shop", "\x1b[31m"), ("\x07",)
    )
    text = "".join(span.text for line in lines(made, 120) for span in line)
    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b[31m" in text and "\\x07" in text


@pytest.mark.parametrize(
    ("room", "expected"), [(20, "lets-ship-it-htx9q"), (18, "lets-ship-it-htx9q"), (12, "lets-s…htx9q")]
)
def test_names_lose_their_middle(room: int, expected: str) -> None:
    assert shortened("lets-ship-it-htx9q", room) == expected
