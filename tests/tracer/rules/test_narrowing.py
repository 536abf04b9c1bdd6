"""Looking up one Service among few rules must find what the map of all Services has."""

from __future__ import annotations

import pytest

from tests.tracer.rules.test_rules_truth import FORMS, rules, services
from tracer.rules.kubeproxy import service_map
from tracer.rules.narrowing import about


@pytest.mark.parametrize("form", FORMS)
def test_each_service_is_as_the_whole_map_has_it(form: str) -> None:
    names = {(port.namespace, port.name) for port in services(form).services}
    assert len(names) == 40
    for namespace, name in names:
        narrowed = service_map(about(rules(form), namespace, name))
        wanted = [port for port in services(form).services if (port.namespace, port.name) == (namespace, name)]
        assert [port for port in narrowed.services if (port.namespace, port.name) == (namespace, name)] == wanted


@pytest.mark.parametrize("form", FORMS)
def test_others_are_left_out(form: str) -> None:
    found = service_map(about(rules(form), "fastapi", "cart-0"))
    assert {(port.namespace, port.name) for port in found.services} == {("fastapi", "cart-0")}
