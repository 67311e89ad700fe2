"""ls: values worked out by hand, and independent implementations."""

from __future__ import annotations

from ntkmtl.weighting import create
from weighting.by_hand import LOSSES


def test_ls() -> None:
    # Eq. 6: the plain sum.
    assert create("ls")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]
