"""docs/dns.md: its commands, run in a cluster, print what it shows."""

from __future__ import annotations

import pytest

from tests.labs.lab import Lab
from tests.labs.pages import blocks, masked, run

PAGE = blocks("dns.md")


def test_the_page_has_commands() -> None:
    assert len(PAGE) == 11


@pytest.mark.root
@pytest.mark.parametrize("block", PAGE, ids=lambda block: block[-1][:40])
def test_a_block(cluster: Lab, block: list[str]) -> None:
    printed, shown = run(cluster, block)
    assert masked(printed) == masked(shown)
