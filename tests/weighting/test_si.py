"""si: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    LOSSES,
    slopes,
    tensor,
)


def test_si() -> None:
    # d log l / d l = 1 / l.
    assert create("si")(losses=LOSSES).tolist() == [2.0, 0.25, 0.5]
    found = create("si")(losses=LOSSES)
    torch.testing.assert_close(found, slopes(lambda x: x.log().sum(), LOSSES), **EXACT)
    assert create("si")(losses=tensor(0.0, 2.0)).tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="negative"):
        create("si")(losses=tensor(-1.0, 2.0))
