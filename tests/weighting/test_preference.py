"""Preferences inside a method's equations: values by hand, and TorchJD's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchjd.aggregation import AlignedMTLWeighting

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create

METHODS = ("upgrad", "dualproj", "aligned-mtl")
# g_1 = (1, 0), g_2 = (-1, 1).
CONFLICT = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)


def kernel(gramian: torch.Tensor) -> ExtendedNTK:
    k = len(gramian)
    return ExtendedNTK(gramian.reshape(k, 1, k, 1))


def test_upgrad_by_hand() -> None:
    # g_1 projected: g_1 + g_2 / 2 = (.5, .5); g_2: g_2 + g_1 = (0, 1). Shares 3/4 and 1/4.
    found = create("upgrad", regularization=0.0, preference=[3, 1])(kernel(CONFLICT))
    assert found.tolist() == pytest.approx([0.75 + 0.25, 0.75 / 2 + 0.25])


def test_dualproj_by_hand() -> None:
    # .9 g_1 + .1 g_2 = (.8, .1) conflicts with g_2 by -.7: plus .35 g_2.
    found = create("dualproj", regularization=0.0, preference=[9, 1])(kernel(CONFLICT))
    assert found.tolist() == pytest.approx([0.9, 0.45])


def test_aligned_mtl_by_hand() -> None:
    # Orthogonal of lengths 1 and 2: 1 / length, times a preference of mean 1.
    gramian = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    found = create("aligned-mtl", preference=[1, 3])(kernel(gramian))
    assert found.tolist() == pytest.approx([0.5, 0.75])


def test_aligned_mtl_as_torchjd() -> None:
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    J = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = AlignedMTLWeighting(pref_vector=shares)(J @ J.T)  # type: ignore[arg-type]
    ours = create("aligned-mtl", preference=(10 * shares).tolist())(kernel(J @ J.T))
    torch.testing.assert_close(ours, 3 * theirs)


def test_dualproj_is_the_projection_of_what_is_preferred() -> None:
    # Optimality: v >= u, G v >= 0, and only what is raised above u has no product left.
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for seed in range(10):
        J = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        G = J @ J.T
        v = create("dualproj", regularization=0.0, preference=shares.tolist())(kernel(G))
        assert bool((v >= shares - 1e-12).all())
        assert bool((G @ v >= -1e-9).all())
        assert float((v - shares) @ G @ v) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_equal_preferences_are_none(name: str) -> None:
    plain, equal = (create(name, **more) for more in ({}, {"preference": [2.0, 2.0]}))
    torch.testing.assert_close(plain(kernel(CONFLICT)), equal(kernel(CONFLICT)))


def test_absent_tasks_are_left_out() -> None:
    weighting = create("dualproj", preference=[9, 5, 1])
    weighting.prepare(3, torch.device("cpu"))
    found = weighting(kernel(torch.eye(2).double()), tasks=torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 0.0], "must be positive and finite"),
        ([1.0, float("nan")], "must be positive and finite"),
        ([1.0], "1 numbers for 2 tasks"),
    ],
)
def test_wrong_preferences_are_refused(values: Any, said: str) -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=said):
        Balancer("upgrad", preference=values).backward([x[0].square(), x[1].square()])
