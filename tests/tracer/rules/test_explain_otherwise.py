"""What `explain` says of a source that is changed, or kept, as it depends on what it can't know."""

from __future__ import annotations

import pytest

from tests.tracer.rules.explaining import ask, save
from tracer.explanation import lines

MANGLE = "mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m length --length 0:99 -j MARK --set-xmark 0x1/0x1"
NAT = "nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m mark {sign}--mark 0x1/0x1 -j MASQUERADE"


@pytest.mark.parametrize("surely", [False, True])
def test_a_source_that_is_changed_as_it_depends(surely: bool) -> None:
    told = ask(save(MANGLE, NAT.format(sign="! " if surely else "")))
    assert told.masquerade is surely
    (other,) = told.otherwise
    assert tuple(other) == ("accept", "10.96.0.1", 80, not surely)
    text = "\n".join("".join(span[0] for span in line) for line in lines(told, 120))
    words = "with its source as it is" if surely else "with its source changed"
    assert f"or else accept to 10.96.0.1:80 {words}, as it depends" in text
