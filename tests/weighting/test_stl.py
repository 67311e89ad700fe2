"""stl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest

from ntkmtl.weighting import create
from weighting.by_hand import (
    tensor,
)


def test_stl_is_for_one_task() -> None:
    assert create("stl")(losses=tensor(3.0)).tolist() == [1.0]
    with pytest.raises(ValueError, match="one task alone"):
        create("stl")(losses=tensor(3.0, 1.0))
