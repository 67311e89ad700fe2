"""Krum: values by hand, and TorchJD's where its rule is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import KrumWeighting

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import create


def kernel(rows: list[list[float]]) -> ExtendedNTK:
    J = torch.tensor(rows, dtype=torch.float64)
    return ExtendedNTK((J @ J.T).reshape(len(J), 1, len(J), 1))


LINE = [[0.0], [1.0], [3.0], [10.0]]


def test_scores_are_sums_of_squared_distances_to_the_nearest() -> None:
    # k - f - 2 = 2 nearest: 1 + 9 = 10, 1 + 4 = 5, 4 + 9 = 13, 49 + 81 = 130.
    assert create("krum")(kernel(LINE)).tolist() == [0, 1, 0, 0]
    assert create("krum", selected=2)(kernel(LINE)).tolist() == [0.5, 0.5, 0, 0]
    assert create("krum", selected=3)(kernel(LINE)).tolist() == pytest.approx([1 / 3] * 3 + [0])
    # f = 1: one nearest, 1, 1, 4, 49: two are equal and share.
    assert create("krum", byzantine=1)(kernel(LINE)).tolist() == [0.5, 0.5, 0, 0]


def test_squares_count_and_not_distances() -> None:
    # From (0, 0): distances 2, 2; from (2, 0): 2 and sqrt 8; from (0, 3): more. With a far point
    # whose two nearest are 1 and 3.2 away: sums 4.2 > 4, squares 11.24 > 8.
    rows = [[0.0], [2.0], [-2.0], [5.0], [6.0]]
    # Three nearest of five: squares 4+4+25, 4+9+16, 4+16+49, 1+9+25, 1+16+36.
    assert create("krum")(kernel(rows)).tolist() == [0, 1, 0, 0, 0]
    # Sums of distances: 2+2+5 = 9, 2+3+4 = 9: TorchJD sees no difference.


def test_one_and_two_gradients() -> None:
    assert create("krum")(kernel([[2.0]])).tolist() == [1]
    assert create("krum", selected=5)(kernel([[2.0], [1.0]])).tolist() == [0.5, 0.5]
    assert create("krum")(kernel([[2.0], [1.0]])).tolist() == [0.5, 0.5]


def test_as_torchjd_where_one_neighbor_counts() -> None:
    # With one neighbor squared distances have the order of distances.
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        J = torch.randn(5, 7, dtype=torch.float64, generator=generator)
        # Two of five share the least distance: all others are as in TorchJD.
        ours = create("krum", byzantine=2, selected=2)(kernel(J.tolist()))
        theirs: Tensor = KrumWeighting(n_byzantine=2, n_selected=2)(J @ J.T)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("settings", [{"byzantine": -1}, {"selected": 0}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        create("krum", **settings)
