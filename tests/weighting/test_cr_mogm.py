"""cr-mogm: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import aggregation

from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def test_cr_mogm_by_hand() -> None:
    # imtl-g gives (3/4, 1/4), (1/2, 1/2), (1/4, 3/4); with alpha = 1/2: 3/4, 5/8, 7/16.
    weighting = create("cr-mogm", inner="imtl-g", alpha=0.5)
    for diagonal, first in (((1, 9), 3 / 4), ((1, 1), 5 / 8), ((9, 1), 7 / 16)):
        found = weigh(weighting, torch.diag(tensor(*diagonal)))
        torch.testing.assert_close(found, tensor(first, 1 - first), **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_cr_mogm_equals_torchjd(alpha: float) -> None:
    # Of IMTL-G: TorchJD's MGDA stops before it is there.
    ours = create("cr-mogm", inner="imtl-g", alpha=alpha)
    theirs = aggregation.CRMOGMWeighting(aggregation.IMTLGWeighting(), alpha=alpha)
    for seed in range(6):
        rows = gradients(4, 6, seed)
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), **EXACT)


def test_cr_mogm_task_without_labels_keeps_its_average() -> None:
    weighting = create("cr-mogm", inner="imtl-g", alpha=0.5)
    weighting.prepare(3, torch.device("cpu"))
    weigh(weighting, torch.eye(2), tasks=torch.tensor([0, 2]))
    assert weighting.state_dict()["average"][1].isnan()
    # imtl-g: 1/3 each. Task 1 starts there, the others come from 1/2: 5/12.
    found = weigh(weighting, torch.eye(3), tasks=torch.arange(3))
    torch.testing.assert_close(found, tensor(5 / 12, 1 / 3, 5 / 12), **EXACT)
    weigh(weighting, torch.eye(1), tasks=torch.tensor([2]))
    torch.testing.assert_close(weighting.state_dict()["average"][:2], found[:2], **EXACT)


def test_cr_mogm_takes_names_and_weightings() -> None:
    rows = gradients()
    made = create("nash-mtl")
    for inner in ("nash-mtl", made):
        found = weigh(create("cr-mogm", inner=inner), rows @ rows.T)
        torch.testing.assert_close(found, weigh("nash-mtl", rows @ rows.T), **EXACT)
    balancer = Balancer("cr-mogm", inner="pcgrad", alpha=0.5)
    assert "weighting.inner.random" in balancer.state_dict()
    for other in ("ls", "graddrop", "ntkmtl"):
        with pytest.raises(ValueError, match="reads the Gramian"):
            create("cr-mogm", inner=other)
    with pytest.raises(ValueError, match="unknown method 'zzz'"):
        create("cr-mogm", inner="zzz")


@pytest.mark.parametrize(("inner", "more"), [("consmtl", "heads"), ("pivrg", "scores")])
def test_cr_mogm_refuses_methods_that_are_more_than_their_weights(inner: str, more: str) -> None:
    with pytest.raises(ValueError, match=f"Found '{inner}', which also needs .*{more}"):
        create("cr-mogm", inner=inner)
