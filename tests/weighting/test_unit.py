"""unit: values worked out by hand, and independent implementations."""

from __future__ import annotations

from ntkmtl.weighting import create
from weighting.by_hand import LOSSES


def test_unit_is_the_plain_sum() -> None:
    assert create("unit")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]
